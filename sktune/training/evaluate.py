"""Evaluating a split: every rank takes part in every forward, every row is scored exactly once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sktune.data import Row, evaluation_batches
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.progress import progress
from sktune.tasks.task import Answers, Scores
from sktune.training.setup import Setup
from sktune.training.stopping import agree, deferred

NOT_READ = frozenset({"index", "valid"})
"""Tensors of a batch that the model does not take."""


def model_inputs(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What the model takes of a collated batch, on its device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name not in NOT_READ}


@torch.no_grad()
@deferred()
def evaluate(setup: Setup, engine: Engine, rows: Sequence[Row], ranks: Ranks, max_batches: int | None = None) -> Scores:
    """Scores of a split, the same on every rank.

    Args:
        setup: the run's parts: task, labels, collator, batch size.
        engine: runs the model.
        rows: the encoded split.
        ranks: shares the rows.
        max_batches: only so many batches of each rank (a trial run).

    Raises:
        Stopped: before a batch, on all ranks, where one was told to stop.
    """
    task = setup.task
    batch_size = setup.recipe.training.per_device_eval_batch_size
    engine.set_training(False)
    answers: Answers = {}
    totals = [0.0, 0.0]
    batches = evaluation_batches([row.length for row in rows], batch_size, ranks.world_size, ranks.rank)
    with progress("evaluating", len(batches), "batches", shown=max_batches is None) as advance:
        for numbers in batches[:max_batches]:
            agree(ranks)
            chosen = [None if number is None else rows[number] for number in numbers]
            batch = setup.collator(chosen)
            output = engine(**model_inputs(batch, ranks.device), num_items_in_batch=1)
            assert output.loss is not None
            totals[0] += float(output.loss)
            totals[1] += sum(row.labelled for row in chosen if row is not None)
            starts = batch["attention_mask"].argmax(1).tolist()
            answers |= task.answers(output, chosen, starts, setup.labels)
            advance(1)
    engine.set_training(True)
    loss_sum, count = ranks.sum(totals)
    everything: Answers = {}
    for part in ranks.gather(answers):
        everything |= part
    return task.score(rows, everything, loss_sum / max(count, 1.0), setup.labels)
