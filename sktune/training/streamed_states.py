"""Filling frozen states with one of the frozen blocks in memory at a time: all examples through it, then the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sktune.backbone.lower_blocks import Prefix
from sktune.backbone.one_by_one import OneByOne
from sktune.data import Row
from sktune.distributed.node import Node
from sktune.distributed.placement import placement_for
from sktune.model.identity import texts_of
from sktune.model.padding import RightAligned
from sktune.progress import progress
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup
from sktune.training.state_reading import StateBatch, state_batches
from sktune.training.stopping import agree

TEXT = "text"
"""Name of the method's text among the splits whose states are kept."""


def text_of(setup: Setup) -> list[Row]:
    """The text that the frozen blocks see in front of every input, as a row; none where there is no such text."""
    parts = texts_of(setup.model.method)
    if not (parts and setup.recipe.method.visible_prefix):
        return []
    return [Row(0, parts[0].input_ids[0].tolist(), None, 0, "")]


def fill_one_by_one(
    setup: Setup,
    splits: Mapping[str, Sequence[Row]],
    arrays: Mapping[str, torch.Tensor],
    node: Node,
    start: int = 0,
    below: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Reads splits through the blocks that the run's model does not have, into arrays [tokens, d]; collective.

    The numbers are those that a model of all blocks gives, to the last bit. What a row is after a block takes the place
    of what it was before it. With no arrays, or from states below, one token is read through the first block, which
    tells how blocks give states.

    Args:
        setup: the run's parts.
        splits: rows by the split's name.
        arrays: to be filled, by the split's name.
        node: the ranks that fill them.
        start: of the blocks, the first that is read.
        below: where that is not block 0, states after the one before it, as `arrays`.
    """
    recipe, ranks, model = setup.recipe, node.ranks, setup.model
    texts = text_of(setup)
    lower = OneByOne(
        model.backbone, recipe.model, recipe.quantization, placement_for(ranks, None, False), sees_text=bool(texts)
    )
    text = torch.tensor([texts[0].input_ids if texts else [0]], device=lower.device)
    text_states: torch.Tensor | None = None
    batches = [
        batch for name in arrays if name != TEXT for batch in state_batches(setup, splits[name], arrays[name], node)
    ]
    if start or not arrays:
        with lower.block(0):
            lower.read_text(0, text[:, :1], None)
    if below:
        any_token = next(iter(below.values()))[:1]  # where no text is read
        text_states = below.get(TEXT, any_token)[None].to(lower.device)
        for name, array in arrays.items() if node.is_first else ():
            array.copy_(below[name])
        ranks.barrier()
    blocks = range(start, model.frozen_blocks) if arrays else range(0)
    with progress("reading data through the frozen blocks", len(blocks) * len(batches), "batches") as advance:
        for number in blocks:
            with lower.block(number):
                text_states, seen = lower.read_text(number, text, text_states)
                for batch in batches:
                    agree(ranks)
                    _read(setup, lower, number, batch, seen if texts else None)
                    advance(1)
    model.backbone.blocks_give_tuples = lower.backbone.blocks_give_tuples
    if TEXT in arrays and node.is_first and text_states is not None:
        arrays[TEXT].copy_(text_states[0])


def _read(setup: Setup, lower: OneByOne, number: int, batch: StateBatch, prefix: Prefix | None) -> None:
    rows = batch.chosen(with_states=number > 0)
    if not any(rows):
        return
    inputs = model_inputs(setup.collator(rows), lower.device)
    aligned = RightAligned(inputs["attention_mask"])
    segments = inputs.get("token_type_ids")
    states = lower.read(
        number,
        aligned.forth(inputs["input_ids"]),
        aligned.attention_mask,
        inputs.get("frozen_states"),
        prefix=prefix,
        segments=None if segments is None else aligned.forth(segments),
    )
    batch.put(states)
