"""Which rows form a batch: the same global batches however they are divided among ranks and micro steps."""

from __future__ import annotations

import random
from collections.abc import Sequence

# Rows are sorted by length within so many global batches: enough for little padding, few enough to stay
# random.
_SORTED_BATCHES = 50


class GlobalBatches:
    """The global batches of each epoch, as row numbers.

    An epoch depends on the lengths, the global batch size, the seed and its own number only, so every rank
    works it out alone. Every row occurs once; where the rows do not divide evenly, the last batch is short
    (and its rows are drawn like any others).

    Args:
        lengths: tokens of each row.
        global_batch_size: rows per optimizer step, over all ranks and micro steps.
        seed: of the order.
        group_by_length: put rows of similar length into the same batch.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int, group_by_length: bool) -> None:
        if not lengths:
            raise ValueError("there are no rows to make batches of.")
        if global_batch_size < 1:
            raise ValueError(f"the global batch size must be at least 1, not {global_batch_size}.")
        self.lengths = list(lengths)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.group_by_length = group_by_length

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the short one included."""
        return -(-len(self.lengths) // self.global_batch_size)

    def epoch(self, number: int) -> list[list[int]]:
        """The global batches of an epoch, in order."""
        # text, not a sum: seed 1 in epoch 0 must not repeat seed 0 in epoch 1
        generator = random.Random(f"{self.seed} {number}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.global_batch_size
        full = len(order) - len(order) % size
        rows, rest = order[:full], order[full:]
        if self.group_by_length:
            span = size * _SORTED_BATCHES
            rows = [
                row
                for start in range(0, full, span)
                for row in sorted(rows[start : start + span], key=lambda row: self.lengths[row])
            ]
        batches = [rows[start : start + size] for start in range(0, full, size)]
        if self.group_by_length:
            generator.shuffle(batches)
            rest.sort(key=lambda row: self.lengths[row])
        return [*batches, rest] if rest else batches


def divide(
    global_batch: Sequence[int], world_size: int, rank: int, micro_steps: int, micro_batch_size: int
) -> list[list[int | None]]:
    """This rank's share of a global batch: one list per micro step.

    The batch is cut into chunks of `micro_batch_size`; step s of rank r takes chunk number s * world_size +
    r. A short batch is filled up with None, so that every rank takes part in every forward pass.

    Returns:
        `micro_steps` lists of `micro_batch_size` row numbers or None.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside a world of {world_size}.")
    if len(global_batch) > world_size * micro_steps * micro_batch_size:
        raise ValueError(
            f"{len(global_batch)} rows do not fit into {world_size} ranks x {micro_steps} micro steps x "
            f"{micro_batch_size} rows."
        )
    shares: list[list[int | None]] = []
    for step in range(micro_steps):
        start = (step * world_size + rank) * micro_batch_size
        shares.append(_filled(global_batch[start : start + micro_batch_size], micro_batch_size))
    return shares


def evaluation_batches(lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[list[int | None]]:
    """This rank's batches of an evaluation: longest rows first, so a lack of memory shows at once.

    Over all ranks every row occurs once; all ranks get the same number of batches of the same size, filled up
    with None.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside a world of {world_size}.")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    starts = range(0, len(order), batch_size)
    batches = [_filled(order[start : start + batch_size], batch_size) for start in starts]
    while len(batches) % world_size:
        batches.append([None] * batch_size)
    return batches[rank::world_size]


def _filled(rows: Sequence[int], size: int) -> list[int | None]:
    return [*rows, *[None] * (size - len(rows))]
