"""Questions to adapters of one frozen model, answered together: one pass reads rows of several adapters."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from sktune.answering import answers_of, example_of
from sktune.backbone import Woven
from sktune.backbone.attention import LayerKeyValues
from sktune.data import Collator, Example, Row
from sktune.data.collate import padded
from sktune.errors import UserError
from sktune.model.tuned_model import TunedOutput
from sktune.serving.adapters import Served, Shelf
from sktune.tasks.heads import LanguageHead, TrainedHead
from sktune.tasks.task import Answers
from sktune.training.evaluate import model_inputs
from sktune.writing import Writing, prompt_of, write

_LONE = re.compile(r"[\ud800-\udfff]")


@dataclass(eq=False)
class Item:
    """One text (or pair, or sentence) that an adapter is asked about.

    served: the adapter.
    example: the text.
    rows: what the model reads of it.
    notes: what was noticed of it: that it was cut, or empty.
    new_tokens: the most that are written; 0 where nothing is.
    answer: what its task shows, once it is there.
    """

    served: Served
    example: Example
    rows: list[Row]
    notes: list[str]
    new_tokens: int = 0
    answer: Future[dict[str, Any]] = field(default_factory=Future)


def ask(
    shelf: Shelf, served: Served, text: str | Sequence[str], pair: str | None, place: str, new_tokens: int | None
) -> Item:
    """A question, as the model is to read it.

    Args:
        shelf: holds the adapter.
        served: the adapter.
        text: a text, or words.
        pair: the second text of a pair.
        place: how messages call it.
        new_tokens: the most to be written; None: what the adapter's recipe says.

    Raises:
        UserError: for what this adapter does not read or write.
    """
    task, most = served.setup.task, served.setup.task.config.new_tokens
    if served.reads_pairs != (pair is not None):
        raise UserError(f"{place}: {served.name} reads {'pairs' if served.reads_pairs else 'single texts'}")
    if new_tokens is not None and new_tokens > most:
        raise UserError(f"max_new_tokens: {served.name} writes " + (f"{most} at most" if most else "nothing"))
    whole = text if isinstance(text, str) else " ".join(text)
    if _LONE.search(whole + (pair or "")):
        raise UserError(f"{place}: holds half of a character (a surrogate without its other half)")
    words = None if isinstance(text, str) else tuple(text)
    if words is not None and not task.reads_words:
        raise UserError(f"{place}: {served.name} reads a text, not a list of words")
    example = example_of(task, whole, pair, words)
    if task.reads_words and not example.words:
        raise UserError(f"{place}: has no words")
    with shelf.encoding:
        encoded = served.setup.encode([example], place, scoring=True)
    return Item(served, example, list(encoded.rows), list(encoded.report), (new_tokens or most) if most else 0)


def kind(item: Item) -> Hashable:
    """Items of one kind are read in one pass: of one adapter, or of several whose heads ask the same.

    Prompts may differ in length; prefixes, and prompts of what the language model answers in words, may not.
    """
    served, woven = item.served, item.served.woven
    if item.new_tokens:
        return served, item.new_tokens
    if woven.gated is not None or woven.behind is not None or woven.layers is not None:
        return served
    prefix = woven.prefix[0][1].key.shape[2] if woven.prefix else 0
    head = served.setup.model.head
    if isinstance(head, TrainedHead):
        return "states", prefix
    if isinstance(head, LanguageHead):
        return "words", prefix, 0 if woven.prompt is None else woven.prompt.shape[1]
    return served


def batches(items: Sequence[Item], size: int) -> Iterator[list[int]]:
    """Numbers of items of one kind, those of similar length together, with so many rows at most (or one item)."""
    batch: list[int] = []
    rows = 0
    for number in sorted(range(len(items)), key=lambda n: -max(row.length for row in items[n].rows)):
        if batch and rows + len(items[number].rows) > size:
            yield batch
            batch, rows = [], 0
        batch.append(number)
        rows += len(items[number].rows)
    if batch:
        yield batch


@torch.no_grad()
def read(shelf: Shelf, items: Sequence[Item]) -> list[dict[str, Any]]:
    """What their tasks show of items of one kind, in order."""
    if items[0].new_tokens:
        prompts = [prompt_of(row) for item in items for row in item.rows]
        writing = Writing(max_new_tokens=items[0].new_tokens)
        texts = write(items[0].served.setup, prompts, writing, shelf.encoding)
        return [{"generated": text} for text in texts]
    rows: list[Row] = []
    groups: list[list[Row]] = []
    owners: list[Served] = []
    for item in items:
        groups.append([replace(row, index=len(rows) + number) for number, row in enumerate(item.rows)])
        rows += groups[-1]
        owners += [item.served] * len(groups[-1])
    if len(set(owners)) == 1:
        answers = answers_of(owners[0].setup, rows)
    else:
        answers = (_in_words if isinstance(owners[0].setup.model.head, LanguageHead) else _of_heads)(rows, owners)
    return [
        item.served.setup.task.shown(item.example, group, answers, item.served.setup.labels)
        for item, group in zip(items, groups, strict=True)
    ]


def _of_heads(rows: Sequence[Row], owners: Sequence[Served]) -> Answers:
    """Of several adapters: hidden states in one pass, then each adapter's head on its own rows."""
    backbone, pad = owners[0].setup.model.backbone, owners[0].setup.collator.pad_token_id
    device, width = backbone.base.device, max(row.length for row in rows)
    ids = padded([row.input_ids for row in rows], pad, width, "right").to(device)
    mask = padded([[1] * row.length for row in rows], 0, width, "right").to(device)
    types: dict[str, Any] = {}
    if any(row.token_type_ids is not None for row in rows):
        types = {"token_type_ids": padded([row.token_type_ids or [] for row in rows], 0, width, "right").to(device)}
    embeds = backbone.embed(ids)
    if owners[0].woven.prefix:
        states = backbone.read(embeds, mask, _joined(owners), **types)
    else:
        states = _behind_prompts(backbone, embeds, mask, owners, types)
    answers: Answers = {}
    for served in dict.fromkeys(owners):
        numbers = [number for number, owner in enumerate(owners) if owner is served]
        scored = served.setup.model.head(states[numbers], mask[numbers], None, {})
        own = [rows[number] for number in numbers]
        answers |= served.setup.task.answers(
            TunedOutput(logits=scored.logits), own, [0] * len(own), served.setup.labels
        )
    return answers


def _behind_prompts(
    backbone: Any, embeds: torch.Tensor, mask: torch.Tensor, owners: Sequence[Served], types: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Hidden states [B, L, d] of right-padded rows, each behind its adapter's prompt, of whatever length or none."""
    prompts = [embeds[0, :0] if owner.woven.prompt is None else owner.woven.prompt[0] for owner in owners]
    lengths = list(zip(map(len, prompts), mask.sum(1).tolist(), strict=True))
    rows = [torch.cat((prompt, row[:own])) for prompt, row, (_, own) in zip(prompts, embeds, lengths, strict=True)]
    joined = pad_sequence(rows, batch_first=True)
    places = torch.arange(joined.shape[1], device=embeds.device)
    whole = (places < torch.tensor([sum(both) for both in lengths], device=embeds.device)[:, None]).to(mask.dtype)
    if types:
        # The prompt belongs to the first segment.
        segments = [
            torch.cat((row.new_zeros(front), row[:own]))
            for row, (front, own) in zip(types["token_type_ids"], lengths, strict=True)
        ]
        types = {"token_type_ids": pad_sequence(segments, batch_first=True)}
    states = backbone.read(joined, whole, **types)
    own_states = [row[front : front + own] for row, (front, own) in zip(states, lengths, strict=True)]
    return pad_sequence(own_states, batch_first=True)


def _in_words(rows: Sequence[Row], owners: Sequence[Served]) -> Answers:
    """Of several adapters: the language model's own likelihoods, in one pass."""
    setup = owners[0].setup
    backbone, head = setup.model.backbone, setup.model.head
    batch = model_inputs(Collator(setup.collator.pad_token_id, "right", setup.task)(rows), backbone.base.device)
    mask, labels = batch["attention_mask"], batch["labels"]
    asked = head.asks(labels, None)
    states = backbone.read(backbone.embed(batch["input_ids"]), mask, _joined(owners), **asked)
    scored = head(states, mask, labels, asked)
    assert scored.row_loss is not None and scored.row_count is not None
    answers: Answers = {}
    for served in dict.fromkeys(owners):
        numbers = [number for number, owner in enumerate(owners) if owner is served]
        output = TunedOutput(row_loss=scored.row_loss[numbers], row_count=scored.row_count[numbers])
        own = [rows[number] for number in numbers]
        answers |= served.setup.task.answers(output, own, [0] * len(own), served.setup.labels)
    return answers


def _joined(owners: Sequence[Served]) -> Woven:
    """What each row's adapter adds, of adapters that add as much: a prefix or a prompt of one length, or nothing."""
    kinds = list(dict.fromkeys(owners))
    row_of = torch.tensor([kinds.index(owner) for owner in owners])
    first = kinds[0].woven

    def of_rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors))[row_of.to(tensors[0].device)]

    if first.prefix:
        layers = zip(*(served.woven.prefix or () for served in kinds), strict=True)
        pairs = [(layer[0][0], [pair for _, pair in layer]) for layer in layers]
        return Woven(
            prefix=[
                (name, LayerKeyValues(of_rows([pair.key for pair in of]), of_rows([pair.value for pair in of])))
                for name, of in pairs
            ]
        )
    prompts = [served.woven.prompt for served in kinds if served.woven.prompt is not None]
    return Woven(prompt=of_rows(prompts) if prompts else None)
