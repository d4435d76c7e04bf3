"""Asks a vLLM server with a trained prompt or prefix in front of a text: `python client.py "a text" [--url URL]`.

This file is sktune's, copied beside what it is for; it needs torch and safetensors, and no sktune. The server is to be
started as README.md says. A prompt goes with each request, as embeddings: for that the server has
`--enable-prompt-embeds`, for clients that are trusted, and `template.jinja`, which puts the parts of a message one
behind the other and nothing in between. A prefix is the server's: `connector.py` puts it into the cache.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def settings(folder: Path) -> dict[str, Any]:
    """What the export says of how texts are read."""
    said: dict[str, Any] = json.loads((folder / "client.json").read_text(encoding="utf-8"))
    return said


def prompt_part(folder: Path) -> dict[str, str]:
    """The prompt as a part of a message: its embeddings [P, d], as torch saves them, in base64."""
    saved = io.BytesIO()
    torch.save(load_file(folder / "prompt.safetensors")["prompt"], saved)
    return {"type": "prompt_embeds", "data": base64.b64encode(saved.getvalue()).decode()}


def message(folder: Path, text: str, text_pair: str = "") -> dict[str, Any]:
    """The message of a text: the prompt, then the text (or pair) in the template that it was trained with."""
    said = settings(folder)
    filled = said["opening"] + said["template"].format(text=text, text_pair=text_pair)
    return {"role": "user", "content": [prompt_part(folder), {"type": "text", "text": filled}]}


def complete(
    text: str,
    text_pair: str = "",
    *,
    url: str = "http://localhost:8000",
    token: str | None = None,
    folder: Path = Path(__file__).parent,
    **options: Any,
) -> dict[str, Any]:
    """The first choice of the server's answer: of a prompt a chat's (`message`), of a prefix a completion's (`text`).

    Args:
        text: to be continued.
        text_pair: the second text of a pair.
        url: of the server.
        token: where the server wants one (`--api-key`).
        folder: of the prompt or prefix.
        options: of OpenAI's protocol: max_tokens, temperature, logprobs ...

    Raises:
        RuntimeError: where the server does not have the prefix.
    """
    headers = {"Content-Type": "application/json", **({} if token is None else {"Authorization": f"Bearer {token}"})}

    def ask(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(url.rstrip("/") + path, data, headers), timeout=600
        ) as found:
            answer: dict[str, Any] = json.load(found)
            return answer

    said = settings(folder)
    model = {"model": ask("/v1/models")["data"][0]["id"]}
    if "salt" not in said:
        body = {"messages": [message(folder, text, text_pair)], "temperature": 0, **options}
        chosen: dict[str, Any] = ask("/v1/chat/completions", model | body)["choices"][0]
        return chosen
    filled = said["template"].format(text=text, text_pair=text_pair)
    read = ask("/tokenize", model | {"prompt": filled, "add_special_tokens": said["special_tokens"]})["tokens"]
    prefix = {"name": said["name"], "salt": said["salt"]}
    body = {
        "prompt": said["placeholders"] + read,
        "cache_salt": said["salt"],
        "kv_transfer_params": {"sktune_prefix": prefix},
        "temperature": 0,
    }
    found = ask("/v1/completions", model | body | options)
    if ((found.get("kv_transfer_params") or {}).get("sktune_prefix") or {}).get("name") != said["name"]:
        raise RuntimeError(f"{url} does not have this prefix as {said['name']!r}; start it as README.md says")
    chosen = found["choices"][0]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("text_pair", nargs="?", default="")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--token")
    parser.add_argument("--max-tokens", type=int, default=64)
    asked = parser.parse_args()
    found = complete(asked.text, asked.text_pair, url=asked.url, token=asked.token, max_tokens=asked.max_tokens)
    print(found["text"] if "text" in found else found["message"]["content"])


if __name__ == "__main__":
    main()
