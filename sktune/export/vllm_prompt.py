"""A prompt for a vLLM server that runs the frozen model: embeddings that a client puts in front of each text."""

from __future__ import annotations

import copy
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
from sktune.tasks.heads import LanguageHead
from sktune.writing import prompt_of

TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}{{- part['text'] -}}"
    "{%- endfor -%}{%- endfor -%}"
)
"""Of a conversation: its parts, with nothing in between. vLLM gives embeddings as a part whose text is a token."""
_PLACE = "<prompt_embeds>"
"""That token (vLLM 0.26 to 0.32)."""
_COMPARED, _WRITTEN = 20, 8
"""Most likely next tokens whose log probabilities are compared, and tokens that are written, of a replayed example."""


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the prompt, the server's template, and a client.

    Raises:
        UserError: for what is no prompt, a head of its own, and a tokenizer that would read a text otherwise behind an
            added token.
    """
    trained.refuse_own_weights()
    model, recipe = trained.setup.model, trained.recipe
    if trained.woven.prompt is None:
        raise UserError(
            f"{trained.folder}: vLLM takes embeddings in front of a text, and {trained.method} is none of those; "
            "train a method that puts a prompt in front of the input (`sktune list methods`)"
        )
    if not isinstance(model.head, LanguageHead):
        raise UserError(
            f"{trained.folder}: {recipe.task.name} answers with a head of its own, which a server of texts does not "
            "have; train a task that the language model answers (`sktune list tasks`), or use `--to transformers`"
        )
    template = PromptTemplate.of(recipe.data)
    opening = _opening(trained, template)
    save_file({"prompt": trained.woven.prompt[0].detach().clone().contiguous()}, folder / "prompt.safetensors")
    write_whole(folder / "template.jinja", TEMPLATE)
    write_whole(folder / "client.json", json.dumps({"opening": opening, "template": template.template}))
    shutil.copyfile(vllm_client.__file__, folder / "client.py")
    return Usage(
        'from client import complete\n\nprint(complete("...", max_tokens=64)["message"]["content"])',
        f"The server runs the frozen model, once for all prompts: `vllm serve {place_of(recipe)[0]} "
        "--enable-prompt-embeds --chat-template template.jinja` (vLLM 0.26 or later), and must be open to trusted "
        "clients only: it loads tensors that they send. Where the answer is one of several words, restrict what is "
        "written with vLLM's `structured_outputs`.",
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
        UserError: where the server cannot be asked.
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
    options: dict[str, Any] = {
        "max_tokens": _WRITTEN,
        "logprobs": True,
        "top_logprobs": _COMPARED,
        "return_tokens_as_token_ids": True,
    }
    for example in examples:
        (row, *_) = setup.encode([example], "test", scoring=True).rows
        prompt = torch.tensor([prompt_of(row)])
        written: Any = setup.model.generate(prompt, torch.ones_like(prompt), generation_config=config)
        try:
            choice = vllm_client.complete(example.text, example.text_pair or "", url=server, folder=folder, **options)
        except (urllib.error.URLError, OSError) as error:
            said = error.read().decode(errors="replace")[:300] if isinstance(error, urllib.error.HTTPError) else error
            raise UserError(f"--server: {server} cannot be asked: {said}") from None
        here = written.logits[0][0].float().log_softmax(-1)
        tokens = choice["logprobs"]["content"]
        for one in tokens[0]["top_logprobs"]:
            there, ours = one["logprob"], float(here[_token(one)])
            worst, largest = max(worst, abs(there - ours)), max(largest, abs(ours))
        theirs = [_token(one) for one in tokens]
        same += theirs == written.sequences[0, prompt.shape[1] :].tolist()[: len(theirs)]
    return {
        "examples": len(examples),
        "what": "log probabilities",
        "largest_difference": worst / largest,
        "same_answers": same / len(examples),
    }


def _token(one: dict[str, Any]) -> int:
    return int(str(one["token"]).removeprefix("token_id:"))
