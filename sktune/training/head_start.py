"""Where a new run's head starts: at the best answer that does not look at the input (see `tasks.heads.TrainedHead`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sktune.data import Row
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.model.tuned_model import TunedModel
from sktune.tasks.config import TaskConfig, WeighedConfig
from sktune.tasks.heads import TrainedHead, summed_features
from sktune.training.evaluate import model_inputs
from sktune.training.steps import Steps

CENTRE_BATCHES = 2
"""Global batches that are read for the centre: the first, and the one after it.

With the first alone, the first gradient of a class that it lacks would be zero but for rounding (the same small
probability times what sums to zero), and AdamW would make a step of the rate of that, another one for each way to cut
the batch.
"""


def weigh_classes(model: TunedModel, task: TaskConfig, labels: Sequence[str] | None, rows: Sequence[Row]) -> None:
    """Gives the head the task's class weights and label smoothing, where it has them; `balanced` counts the rows.

    Raises:
        UserError: for a weight of a label that there is not.
    """
    if isinstance(model.head, TrainedHead) and isinstance(task, WeighedConfig) and labels is not None:
        found = _labels_of(model.head, rows)
        counts = torch.bincount(found[model.head.counted(found)], minlength=len(labels)).tolist()
        model.head.weigh(task.weights(labels, counts), task.label_smoothing)


def _labels_of(head: TrainedHead, rows: Sequence[Row]) -> torch.Tensor:
    """The labels of all rows, as they come in a batch."""
    labels: list[Any] = [row.labels for row in rows]
    if head.per_token:
        labels = [label for of_row in labels for label in of_row]
    return torch.tensor(labels)


def set_prior(model: TunedModel, rows: Sequence[Row]) -> None:
    """Sets the head's bias from the labels of all training rows, which every rank has.

    Before the engine is built: what DeepSpeed keeps of the parameters is copied from them there.
    """
    if isinstance(model.head, TrainedHead):
        model.head.set_prior(_labels_of(model.head, rows))


@torch.no_grad()
def set_centre(model: TunedModel, engine: Engine, steps: Steps, ranks: Ranks) -> None:
    """Reads this rank's share of the first global batches for the head's centre; every rank takes part.

    In evaluation mode: the mean is to be of what the model reads, not of one draw of dropout, which differs by rank.
    """
    if isinstance(model.head, TrainedHead):
        engine.set_training(False)
        with summed_features(model.head) as own:
            for batch in (batch for step in range(CENTRE_BATCHES) for batch in steps.own(step)):
                engine(**model_inputs(batch, ranks.device), num_items_in_batch=1)
        engine.set_training(True)
        model.head.set_centre(torch.tensor(ranks.sum(own.tolist()), dtype=torch.float64))
