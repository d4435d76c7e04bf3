"""A dry run of a deep model, worked out from two shallow ones.

Where all blocks are alike, what is alive at an event is a sum of three parts: one that is always there, one for each
block that comes before it, one for each block of the model. Two shallow runs tell all three, exactly; what ZeRO-3 has
gathered follows no such rule, and is followed event by event at the full depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from torch import nn

from sktune.planning.dry_run import DryRun, Event, Mark
from sktune.planning.zero_hooks import Use
from sktune.tasks import TunedModel

SHALLOW = (5, 6)
"""Blocks of the two models: two that come first, the last, two between; and one more."""
_FIRST = 2

Ran = tuple[TunedModel, DryRun]


def deepened(small: Ran, large: Ran, model: TunedModel) -> DryRun | None:
    """The dry run of `model`, from those of models that differ from it in nothing but having `SHALLOW` blocks.

    Returns:
        None where the blocks do not simply follow each other, or are not alike after all, and the model itself has
        to be run.
    """
    places = [_Places(ran) for ran in (small[0], large[0], model)]
    beyond = places[2].depth - places[0].depth
    deep = []
    for name in ("first", "step", "evaluation"):
        few, more = getattr(small[1], name), getattr(large[1], name)
        few_passes, more_passes = _passes(few, places[0]), _passes(more, places[1])
        if few_passes is None or more_passes is None or not _alike(few_passes, more_passes):
            return None
        deep.append(tuple(_deepen(few_passes, more_passes, beyond, places[0], places[2])))
    resting, logits = ((a, b - a) for a, b in zip(small[1].kept(), large[1].kept(), strict=True))
    return DryRun(resting[0] + resting[1] * beyond, logits[0] + logits[1] * beyond, *deep)


class _Places:
    """Which block each module is in (None: outside), and the how-manieth there."""

    def __init__(self, model: TunedModel) -> None:
        blocks = model.backbone.blocks
        self.depth = len(blocks)
        inside: dict[nn.Module, tuple[int | None, int]] = {
            module: (i, k) for i, block in enumerate(blocks) for k, module in enumerate(block.modules())
        }
        outside = iter(range(10**9))
        self.of_number = [inside[m] if m in inside else (None, next(outside)) for m in model.modules()]
        self.number_of = {place: number for number, place in enumerate(self.of_number)}

    def block(self, event: Event) -> int | None:
        """The block an event belongs to."""
        return event.what.block if isinstance(event.what, Mark) else self.of_number[event.what.module][0]


class _Passes(NamedTuple):
    """Events outside the blocks, and between them those of each block, upwards or downwards."""

    outside: list[list[Event]]
    blocks: list[dict[int, list[Event]]]


def _passes(events: Sequence[Event], places: _Places) -> _Passes | None:
    found = _Passes([], [{}])
    for block, group in groupby(events, places.block):
        if block is None:
            found.outside.append(list(group))
            found.blocks.append({})
        elif block in found.blocks[-1]:
            return None
        else:
            found.blocks[-1][block] = list(group)
    upwards = list(range(places.depth))
    plain = all(list(blocks) in (upwards, upwards[::-1]) for blocks in found.blocks[1:-1])
    return found if plain and not found.blocks[0] and not found.blocks[-1] else None


def _alike(few: _Passes, more: _Passes) -> bool:
    def lengths(passes: _Passes, block: int) -> list[int]:
        return [len(blocks[block % len(blocks)]) for blocks in passes.blocks[1:-1]]

    same_outside = [len(events) for events in few.outside] == [len(events) for events in more.outside]
    between = [lengths(few, i) for i in (2, 3)] + [lengths(more, i) for i in (2, 3, 4)]
    edges = all(lengths(few, i) == lengths(more, i) for i in (0, 1, -1))
    if not (same_outside and edges and all(sizes == between[0] for sizes in between)):
        return False
    return all(
        b.live - a.live == c.live - b.live == e.live - d.live and b.peak - a.peak == c.peak - b.peak == e.peak - d.peak
        for less, larger in zip(few.blocks[1:-1], more.blocks[1:-1], strict=True)
        for a, b, c, d, e in zip(*(larger[i] for i in (2, 3, 4)), less[2], less[3], strict=True)
    )


def _deepen(few: _Passes, more: _Passes, beyond: int, small: _Places, full: _Places) -> list[Event]:
    result: list[Event] = []

    def add(block: int | None, events: list[Event], larger: list[Event], next_block: list[Event], away: int) -> None:
        for one, deep, following in zip(events, larger, next_block, strict=True):
            what: Use | Mark
            if isinstance(one.what, Mark):
                what = one.what._replace(block=block)
            else:
                what = one.what._replace(module=full.number_of[block, small.of_number[one.what.module][1]])
            live = one.live + (deep.live - one.live) * beyond + (following.live - one.live) * away
            peak = one.peak + (deep.peak - one.peak) * beyond + (following.peak - one.peak) * away
            result.append(replace(one, what=what, live=live, peak=peak))

    for i, outside in enumerate(few.outside):
        add(None, outside, more.outside[i], outside, 0)
        blocks, larger = few.blocks[i + 1], more.blocks[i + 1]
        if not blocks:
            continue
        order = range(full.depth) if next(iter(blocks)) == 0 else range(full.depth - 1, -1, -1)
        for block in order:
            if block < _FIRST:
                add(block, blocks[block], larger[block], blocks[block], 0)
            elif block == full.depth - 1:
                add(block, blocks[small.depth - 1], larger[small.depth], blocks[small.depth - 1], 0)
            else:
                add(block, blocks[_FIRST], larger[_FIRST], blocks[_FIRST + 1], block - _FIRST)
    return result
