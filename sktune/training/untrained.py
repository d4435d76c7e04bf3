"""A run of a method that trains nothing: validation is scored once, at step 0."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sktune.data import Row
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.tracking import Tracker
from sktune.training.assembly import Assembly
from sktune.training.checkpoint import Progress
from sktune.training.evaluation import evaluate
from sktune.training.meters import ThroughputMeter

logger = logging.getLogger(__name__)


@dataclass
class Untrained:
    """Takes the place of the loop. It leaves no checkpoint: there is nothing to go on from."""

    assembly: Assembly
    validation_rows: list[Row] | None
    engine: Engine
    ranks: Ranks
    tracker: Tracker
    progress: Progress
    meter: ThroughputMeter

    def run(self) -> Progress:
        """Scores validation."""
        if self.validation_rows is None:
            return self.progress
        metrics = evaluate(self.assembly, self.engine, self.validation_rows, self.ranks).metrics
        recipe = self.assembly.recipe
        best = metrics[recipe.training.metric_for_best_model or recipe.task.metrics()[0]]
        self.progress.best_step, self.progress.best_value = 0, best
        self.progress.history.append({"step": 0.0, **metrics})
        self.tracker.log_metrics({f"validation/{name}": value for name, value in metrics.items()}, 0)
        logger.info("validation: %s", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        return self.progress
