"""A prompt as added tokens of the model and its tokenizer: a whole checkpoint, for engines that know no adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import Sequence as InTurn
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sktune.errors import UserError
from sktune.export.peft_folder import head_of
from sktune.export.replaying import replay_logits
from sktune.export.trained import Trained, Usage, plain_model, save_plain
from sktune.model.continuing import continuing
from sktune.sections import QuantizationSection

TOKEN = "<|sktune_{}|>"
_SAMPLE = "a text, and another one"


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the checkpoint and the tokenizer, which puts the prompt's tokens in front of every text by itself.

    Raises:
        UserError: for what is no prompt, a head that transformers has no like of, and a model or a tokenizer that reads
            added tokens in another way.
    """
    trained.refuse_own_weights()
    if trained.woven.prompt is None:
        raise UserError(
            f"{trained.folder}: {trained.method} puts no embeddings in front of the input, which tokens could stand "
            "for; `--to transformers` takes a prefix, `--to peft` layers of peft"
        )
    head, _ = head_of(trained)
    tokenizer, tokens = _tokenizer(trained, len(trained.woven.prompt[0]))
    unpacked = trained.recipe.model_copy(update={"quantization": QuantizationSection()})
    labels = trained.setup.labels
    options: dict[str, Any] = {"num_labels": len(labels)} if head and labels is not None else {}
    model = plain_model(unpacked, _kind(trained), **options)
    _add_rows(trained, model, tokens)
    if head:
        assert labels is not None
        with torch.no_grad():
            for name, tensor in head.items():
                model.get_parameter(name).copy_(tensor)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
    elif model.generation_config is not None:
        model.generation_config.suppress_tokens = tokens
    save_plain(model, folder)
    tokenizer.save_pretrained(str(folder))
    _check_tokenizer(trained, folder, tokens)
    return _usage(trained, folder, tokens)


def replay(trained: Trained, folder: Path, count: int) -> dict[str, Any]:
    """Logits of test examples here and there."""
    plain, outputs = Plain(trained, folder), trained.setup.model.backbone.vocabulary_size
    # The added tokens may stand in rows that the model had without a token.
    others = slice(None) if trained.head() else [i for i in range(outputs) if i not in plain.tokens.tolist()]
    return replay_logits(trained, plain, count, others)


class Plain:
    """The checkpoint as transformers loads it, at the recipe's precision."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        self.model = plain_model(trained.recipe, _kind(trained), folder=folder)
        names = [TOKEN.format(number) for number in range(len(trained.woven.prompt[0]))]  # type: ignore[index]
        self.tokens = torch.tensor(AutoTokenizer.from_pretrained(str(folder)).convert_tokens_to_ids(names))
        self.outputs = None if trained.head() else trained.setup.model.backbone.vocabulary_size

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, L] right-padded -> logits of the input's positions [B, L, outputs], as many as sktune's."""
        ids = torch.cat((self.tokens.expand(len(input_ids), -1), input_ids), dim=1)
        mask = F.pad(attention_mask, (len(self.tokens), 0), value=1)
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return found[:, len(self.tokens) :, : self.outputs].float()


def _kind(trained: Trained) -> Any:
    return AutoModelForTokenClassification if trained.head() else AutoModelForCausalLM


def _tokenizer(trained: Trained, count: int) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The model's tokenizer with so many tokens more, which it puts in front of a text; and their ids."""
    given, names = trained.setup.tokenizer, [TOKEN.format(number) for number in range(count)]
    if TOKEN.format(0) in given.get_vocab():
        raise UserError(f"{trained.folder}: the tokenizer has a token {TOKEN.format(0)} already; export from its model")
    goes_on = trained.recipe.method.opens_sequence and not trained.setup.model.backbone.is_encoder
    tokenizer: Any = continuing(given) if goes_on else copy.deepcopy(given)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokens: list[int] = tokenizer.convert_tokens_to_ids(names)
    backend, front = tokenizer.backend_tokenizer, " ".join(names)
    in_front = TemplateProcessing(
        single=f"{front} $A", pair=f"{front} $A $B:1", special_tokens=list(zip(names, tokens, strict=True))
    )
    before = backend.post_processor
    backend.post_processor = in_front if before is None else InTurn([before, in_front])
    # A class of the model's own would make the post-processor anew when it is loaded.
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="right", chat_template=tokenizer.chat_template, **special
    )
    return plain, tokens


@torch.no_grad()
def _add_rows(trained: Trained, model: PreTrainedModel, tokens: list[int]) -> None:
    """Puts the prompt into the rows of the added tokens, in the model's dtype, as sktune reads it."""
    prompt = trained.woven.prompt
    assert prompt is not None
    embeddings: Any = model.get_input_embeddings()
    if max(tokens) >= len(embeddings.weight):
        model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
        embeddings = model.get_input_embeddings()
    output = model.get_output_embeddings()
    if output is not None and output.weight is not embeddings.weight:
        output.weight[tokens] = 0
    embeddings.weight[tokens] = prompt[0].to(embeddings.weight.dtype)
    read = embeddings(torch.tensor(tokens))
    if not torch.equal(read, prompt[0].to(read.dtype)):
        raise UserError(
            f"{trained.folder}: this {trained.setup.model.backbone.family} changes embeddings as it looks them up, so "
            "its vocabulary cannot hold the prompt; use `--to transformers`"
        )


def _check_tokenizer(trained: Trained, folder: Path, tokens: list[int]) -> None:
    """Holds the tokenizer that was written against how sktune reads a text behind the prompt.

    Raises:
        UserError: where it gives other tokens.
    """
    goes_on = trained.recipe.method.opens_sequence and not trained.setup.model.backbone.is_encoder
    wanted = [*tokens, *trained.setup.tokenizer(_SAMPLE, add_special_tokens=not goes_on)["input_ids"]]
    found = AutoTokenizer.from_pretrained(str(folder))(_SAMPLE)["input_ids"]
    if found != wanted:
        raise UserError(
            f"{trained.folder}: transformers' tokenizer would read a text behind the prompt as {found}, not as "
            f"{wanted}; use `--to transformers`"
        )


def _usage(trained: Trained, folder: Path, tokens: list[int]) -> Usage:
    kind = _kind(trained).__name__
    size = sum(file.stat().st_size for file in folder.iterdir())
    banned = "" if trained.head() else " `generation_config.json` keeps them out of what is written (suppress_tokens)."
    ending = "model(**tokenizer(text, return_tensors='pt')).logits"
    if not trained.head():
        ending = 'model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=32)'
    return Usage(
        f"import torch\nfrom transformers import {kind}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.name}")\n'
        f'model = {kind}.from_pretrained("{folder.name}", dtype=torch.{trained.recipe.model.dtype})\n'
        f"output = {ending}",
        f"A whole model, {size / 1e6:,.0f} MB: the prompt is the tokens {tokens[0]} to {tokens[-1]}, which the "
        f"tokenizer puts in front of every text by itself. Where it is not used, or adds no special tokens (chat "
        f"templates), put these ids in front.{banned} An engine that does not read that file needs a bias on them.",
    )
