"""Filling frozen states with one of the frozen blocks in memory at a time: all examples through it, then the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch

from sktune.backbone.lower_blocks import Prefix
from sktune.backbone.one_by_one import OneByOne
from sktune.data import Row, evaluation_batches
from sktune.distributed.placement import placement_for
from sktune.methods.prompt_text import PromptText
from sktune.model.padding import RightAligned
from sktune.progress import progress
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup
from sktune.training.state_files import Node
from sktune.training.stopping import agree

TEXT = "text"
"""Name of the method's text among the splits whose states are kept."""


class _Batch(NamedTuple):
    rows: Sequence[Row]
    array: torch.Tensor
    starts: Sequence[int]
    numbers: Sequence[int | None]


def text_of(setup: Setup) -> list[Row]:
    """The text that the frozen blocks see in front of every input, as a row; none where there is no such text."""
    parts = [part for part in setup.model.method.modules() if isinstance(part, PromptText)]
    if not (parts and setup.recipe.method.visible_prefix):
        return []
    return [Row(0, parts[0].input_ids[0].tolist(), None, 0, "")]


def fill_one_by_one(
    setup: Setup, splits: Mapping[str, Sequence[Row]], arrays: Mapping[str, torch.Tensor], node: Node
) -> None:
    """Reads splits through the blocks that the run's model does not have, into arrays [tokens, d]; collective.

    The numbers are those that a model of all blocks gives, to the last bit. What a row is after a block takes the place
    of what it was before it. With no arrays one token is read through one block, which tells how blocks give states.
    """
    recipe, ranks, model = setup.recipe, node.ranks, setup.model
    texts = text_of(setup)
    lower = OneByOne(
        model.backbone, recipe.model, recipe.quantization, placement_for(ranks, None, False), sees_text=bool(texts)
    )
    text = torch.tensor([texts[0].input_ids if texts else [0]], device=lower.device)
    text_states = None
    batches = [batch for name in arrays if name != TEXT for batch in _batches(setup, splits[name], arrays[name], node)]
    count = model.frozen_blocks if arrays else 1
    with progress("reading data through the frozen blocks", count * len(batches), "batches") as advance:
        for number in range(count):
            with lower.block(number):
                text_states, seen = lower.read_text(number, text, text_states)
                for batch in batches:
                    agree(ranks)
                    _read(setup, lower, number, batch, seen if texts else None)
                    advance(1)
    model.backbone.blocks_give_tuples = lower.backbone.blocks_give_tuples
    if TEXT in arrays and node.is_first and text_states is not None:
        arrays[TEXT].copy_(text_states[0])


def _batches(setup: Setup, rows: Sequence[Row], array: torch.Tensor, node: Node) -> list[_Batch]:
    size, lengths = setup.recipe.training.per_device_eval_batch_size, [row.length for row in rows]
    starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    own = evaluation_batches(lengths, size, node.size, node.index)
    # Every rank asks as often whether one was told to stop.
    own += [[]] * (max(node.ranks.gather(len(own))) - len(own))
    return [_Batch(rows, array, starts, numbers) for numbers in own]


def _read(setup: Setup, lower: OneByOne, number: int, batch: _Batch, prefix: Prefix | None) -> None:
    present = [n for n in batch.numbers if n is not None]
    if not present:
        return
    rows = [None if n is None else _with_states(batch, n, number) for n in batch.numbers]
    inputs = model_inputs(setup.collator(rows), lower.device)
    aligned = RightAligned(inputs["attention_mask"])
    segments = inputs.get("token_type_ids")
    after = lower.read(
        number,
        aligned.forth(inputs["input_ids"]),
        aligned.attention_mask,
        inputs.get("frozen_states"),
        prefix=prefix,
        segments=None if segments is None else aligned.forth(segments),
    )
    for of_row, n in zip(after, batch.numbers, strict=True):
        if n is not None:
            start, length = batch.starts[n], batch.rows[n].length
            batch.array[start : start + length] = of_row[:length].cpu()


def _with_states(batch: _Batch, n: int, number: int) -> Row:
    row, start = batch.rows[n], batch.starts[n]
    return replace(row, states=batch.array[start : start + row.length]) if number else row
