"""The batches of a run's steps.

A step's batch is a function of the seed and the step alone, then cut among ranks and accumulation steps: 4x1, 1x4 and
two ranks are one trajectory, and a resumed run needs no sampler's state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from sktune.data import GlobalBatches, Row, divide
from sktune.distributed.ranks import Ranks
from sktune.sections import TrainingSection
from sktune.training.setup import Setup


def global_batch_size(training: TrainingSection, ranks: int) -> int:
    """Rows of a step's batch over all ranks."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * ranks


def total_steps(training: TrainingSection, per_epoch: int) -> int:
    """Optimizer steps of a run: as many as the recipe says, else those of its epochs."""
    return math.ceil(training.num_train_epochs * per_epoch) if training.max_steps is None else training.max_steps


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of the random numbers that a rank draws in a step; the same in every version of Python."""
    drawn = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") >> 1


def epochs(training: TrainingSection, rows: Sequence[Row] | None, ranks: Ranks) -> float:
    """How often a run reads its training rows."""
    if not rows:
        return 0.0
    per_epoch = math.ceil(len(rows) / global_batch_size(training, ranks.world_size))
    return total_steps(training, per_epoch) / per_epoch


class Steps:
    """What each optimizer step reads.

    Args:
        setup: the run's parts.
        rows: of the training split.
        ranks: share each step's batch.
    """

    def __init__(self, setup: Setup, rows: Sequence[Row], ranks: Ranks) -> None:
        self.training = setup.recipe.training
        self.collator, self.rows, self.ranks = setup.collator, rows, ranks
        self.global_batch_size = global_batch_size(self.training, ranks.world_size)
        self.batches = GlobalBatches(
            [row.length for row in rows], self.global_batch_size, self.training.seed, setup.recipe.data.group_by_length
        )
        self.per_epoch = self.batches.steps_per_epoch
        self.total = total_steps(self.training, self.per_epoch)
        self._counts = [row.labelled for row in rows]
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def row_numbers(self, step: int) -> list[int]:
        """Rows of a step's batch over all ranks; step counts from 0."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.batches.epoch(epoch))
        return self._epoch[1][position]

    def labels(self, step: int) -> int:
        """Labels that count in a step's batch over all ranks."""
        return sum(self._counts[number] for number in self.row_numbers(step))

    def own(self, step: int) -> list[dict[str, torch.Tensor]]:
        """This rank's share of a step's batch, collated: one for each accumulation step."""
        shares = divide(
            self.row_numbers(step),
            self.ranks.world_size,
            self.ranks.rank,
            self.training.gradient_accumulation_steps,
            self.training.per_device_train_batch_size,
        )
        return [self.collator([None if number is None else self.rows[number] for number in share]) for share in shares]
