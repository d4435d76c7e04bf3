"""A prompt or a prefix for a vLLM server that runs the frozen model.

A prompt goes with each request, as embeddings; a prefix is put into the server's cache by a connector of ours.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import urllib.error
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AddedToken, GenerationConfig

from sktune.data import Example
from sktune.data.prompt_template import PromptTemplate
from sktune.errors import UserError
from sktune.export import vllm_client
from sktune.export.replaying import examples_to_replay
from sktune.export.trained import Trained, Usage, place_of
from sktune.files import write_whole
from sktune.model.identity import TOKENS
from sktune.tasks.heads import LanguageHead
from sktune.writing import prompt_of

TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}{{- part['text'] -}}"
    "{%- endfor -%}{%- endfor -%}"
)
"""Of a conversation: its parts, with nothing in between. vLLM gives embeddings as a part whose text is a token."""
CONNECTOR = "vllm_connector.py"
"""Beside this module; it imports vLLM, which sktune does not need."""
_PLACE = "<prompt_embeds>"
"""That token (vLLM 0.26 to 0.32)."""
_COMPARED, _WRITTEN = 20, 8
"""Most likely next tokens whose log probabilities are compared, and tokens that are written, of a replayed example."""


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the prompt or prefix, what a server needs to take it, and a client.

    Raises:
        UserError: for what is neither, a head of its own, a prefix that a sliding window would hide, and a tokenizer
            that would read a text otherwise behind an added token.
    """
    trained.refuse_own_weights()
    trained.refuse_hidden_prefix()
    recipe, woven = trained.recipe, trained.woven
    if woven.prompt is None and woven.prefix is None:
        raise UserError(
            f"{trained.folder}: vLLM takes embeddings or a prefix in front of a text, and {trained.method} is none of "
            "those; train a method in front of the input (`sktune list methods`)"
        )
    if not isinstance(trained.setup.model.head, LanguageHead):
        raise UserError(
            f"{trained.folder}: {recipe.task.name} answers with a head of its own, which a server of texts does not "
            "have; train a task that the language model answers (`sktune list tasks`), or use `--to transformers`"
        )
    shutil.copyfile(vllm_client.__file__, folder / "client.py")
    place = place_of(recipe)[0]
    serve = _write_prefix(trained, folder, place) if woven.prompt is None else _write_prompt(trained, folder, place)
    return Usage(
        'from client import complete\n\nchoice = complete("...", max_tokens=64)',
        f"{serve} Where the answer is one of several words, restrict what is written with vLLM's `structured_outputs`.",
    )


def _write_prompt(trained: Trained, folder: Path, place: str) -> str:
    """Writes a prompt; returns how the server is started."""
    template, prompt = PromptTemplate.of(trained.recipe.data), trained.woven.prompt
    assert prompt is not None
    said = {"opening": _opening(trained, template), "template": template.template}
    save_file({"prompt": prompt[0].detach().clone().contiguous()}, folder / "prompt.safetensors")
    write_whole(folder / "template.jinja", TEMPLATE)
    write_whole(folder / "client.json", json.dumps(said))
    return (
        f"The server runs the frozen model, once for all prompts: `vllm serve {place} --enable-prompt-embeds "
        "--chat-template template.jinja` (vLLM 0.26 or later), and must be open to trusted clients only: it loads "
        "tensors that they send."
    )


def _write_prefix(trained: Trained, folder: Path, place: str) -> str:
    """Writes a prefix; returns how the server is started."""
    config, prefix = trained.setup.model.backbone.config, trained.woven.prefix
    assert prefix is not None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if any(pair.key.shape != pair.value.shape or pair.key.shape[1] != heads for _, pair in prefix):
        raise UserError(
            f"{trained.folder}: the keys and values of this {trained.setup.model.backbone.family} are not what vLLM's "
            "cache holds of it; use `--to transformers`"
        )
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in trained.prefix().items()}
    length = prefix[0][1].key.shape[2]
    save_file(tensors, folder / "prefix.safetensors")
    read = trained.setup.belongs_to().get(TOKENS) or []
    said = {
        "name": folder.name,
        "salt": hashlib.sha256((folder / "prefix.safetensors").read_bytes()).hexdigest()[:16],
        # The text's own tokens, for what a server does with those of a prompt: penalties of repetition.
        "placeholders": read[0] if read and len(read[0]) == length else [0] * length,
        "special_tokens": not trained.recipe.method.opens_sequence,
        "template": PromptTemplate.of(trained.recipe.data).template,
    }
    write_whole(folder / "client.json", json.dumps(said))
    shutil.copyfile(Path(vllm_client.__file__).with_name(CONNECTOR), folder / "connector.py")
    settings = {
        "kv_connector": "PrefixConnector",
        "kv_connector_module_path": "connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"prefixes": {folder.name: "."}},
    }
    write_whole(folder / "kv_transfer.json", json.dumps(settings))
    return (
        f"The server runs the frozen model, once for all prefixes: in this folder, `PYTHONPATH=. vllm serve {place} "
        f'--kv-transfer-config "$(cat kv_transfer.json)"`; `prefixes` in that file names the folder of each.'
    )


def _opening(trained: Trained, template: PromptTemplate) -> str:
    """What stands in front of a text, so that vLLM's tokenizer reads behind an added token what sktune reads.

    A BOS where the prompt brings none; and a blank for tokenizers that put one in front of a text by themselves.

    Raises:
        UserError: where neither will do.
    """
    given = trained.setup.tokenizer
    other: Any = copy.deepcopy(given)
    other.add_tokens([AddedToken(_PLACE, special=True, normalized=False)])
    place = other.convert_tokens_to_ids(_PLACE)
    example = Example(0, "A text, and another one.", "A second.")
    (row, *_) = trained.setup.encode([example], "sample", scoring=True).rows
    wanted = prompt_of(row)
    bos = str(given.bos_token) if wanted[0] == given.bos_token_id else ""
    for opening in (bos, f"{bos} "):
        found = other(_PLACE + opening + template.fill(example), add_special_tokens=False)["input_ids"]
        if found == [place, *wanted]:
            return opening
    raise UserError(
        f"{trained.folder}: behind a prompt vLLM's tokenizer would read a text as {found[1:]}, not as {wanted}; use "
        "`--to vocabulary`, which brings a tokenizer of its own, or `--to transformers`"
    )


@torch.no_grad()
def replay(trained: Trained, folder: Path, count: int, *, server: str) -> dict[str, Any]:
    """Log probabilities of the next token after test examples here and on a server, and what both write.

    Raises:
        UserError: where the server cannot be asked, or does not have the prefix.
    """
    setup, examples = trained.setup, examples_to_replay(trained, count)
    worst, largest, same = 0.0, 1.0, 0
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_WRITTEN,
        pad_token_id=setup.collator.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    chat = trained.woven.prompt is not None
    options: dict[str, Any] = {"max_tokens": _WRITTEN, "return_tokens_as_token_ids": True}
    options |= {"logprobs": True, "top_logprobs": _COMPARED} if chat else {"logprobs": _COMPARED}
    for example in examples:
        (row, *_) = setup.encode([example], "test", scoring=True).rows
        prompt = torch.tensor([prompt_of(row)])
        written: Any = setup.model.generate(prompt, torch.ones_like(prompt), generation_config=config)
        try:
            choice = vllm_client.complete(example.text, example.text_pair or "", url=server, folder=folder, **options)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            said = error.read().decode(errors="replace")[:300] if isinstance(error, urllib.error.HTTPError) else error
            raise UserError(f"--server: {server} cannot be asked: {said}") from None
        here = written.logits[0][0].float().log_softmax(-1)
        likely, theirs = _read(choice["logprobs"], chat)
        for token, there in likely.items():
            worst, largest = max(worst, abs(there - float(here[token]))), max(largest, abs(float(here[token])))
        same += theirs == written.sequences[0, prompt.shape[1] :].tolist()[: len(theirs)]
    return {
        "examples": len(examples),
        "what": "log probabilities",
        "largest_difference": worst / largest,
        "same_answers": same / len(examples),
    }


def _read(logprobs: Any, chat: bool) -> tuple[dict[int, float], list[int]]:
    """Log probabilities of the likeliest first tokens, and the tokens that were written."""
    if chat:
        first = {_token(one["token"]): one["logprob"] for one in logprobs["content"][0]["top_logprobs"]}
        return first, [_token(one["token"]) for one in logprobs["content"]]
    first = {_token(token): value for token, value in logprobs["top_logprobs"][0].items()}
    return first, [_token(token) for token in logprobs["tokens"]]


def _token(named: str) -> int:
    return int(named.removeprefix("token_id:"))
