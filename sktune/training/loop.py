"""The training loop.

A step's batch, learning rate and random numbers are functions of the seed and the step alone. So batches cut
4x1, 1x4 or over 2 ranks give one trajectory, and a resumed run needs nothing but weights, moments and the step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sktune.data import GlobalBatches, Row, divide
from sktune.distributed.engine import Engine
from sktune.distributed.optimizer import rate_factor
from sktune.distributed.ranks import Ranks
from sktune.progress import progress
from sktune.tasks.metrics import is_better
from sktune.tasks.task import Scores
from sktune.tracking import Tracker
from sktune.training.assembly import Assembly
from sktune.training.checkpoint import Progress, checkpoint_path, load_checkpoint, save_checkpoint
from sktune.training.evaluation import evaluate, model_inputs
from sktune.training.head_start import CENTRE_BATCHES, set_centre
from sktune.training.meters import ThroughputMeter, peak_memory
from sktune.training.stopping import Stopped, decide, deferred, votes

logger = logging.getLogger(__name__)

TRIAL_BATCHES = 2
"""Evaluation batches tried before the first step, so that a crash in evaluation costs seconds."""


def plan_steps(assembly: Assembly, row_lengths: Sequence[int], world_size: int) -> tuple[GlobalBatches, int]:
    """(the run's batches, its number of optimizer steps)."""
    training, data = assembly.recipe.training, assembly.recipe.data
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps * world_size
    batches = GlobalBatches(row_lengths, size, training.seed, data.group_by_length)
    if training.max_steps is not None:
        return batches, training.max_steps
    return batches, math.ceil(training.num_train_epochs * batches.steps_per_epoch)


@dataclass
class Loop:
    """One training run over prepared parts; `run` is the whole of it."""

    assembly: Assembly
    train_rows: list[Row]
    validation_rows: list[Row] | None
    engine: Engine
    ranks: Ranks
    tracker: Tracker
    output_dir: Path
    batches: GlobalBatches
    total_steps: int
    progress: Progress
    meter: ThroughputMeter

    def __post_init__(self) -> None:
        self.training = self.assembly.recipe.training
        self.metric = self.training.metric_for_best_model or self.assembly.recipe.task.metrics()[0]
        self._counts = [row.labelled for row in self.train_rows]
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        # Before the first update there is nothing to go on from: a run of zero steps leaves no checkpoint.
        self._saved_step: int | None = self.progress.step if self.progress.step or not self.total_steps else None
        self._votes = [0.0, 0.0]  # all ranks', on stopping

    @deferred()
    def run(self) -> Progress:
        """Trains to the end, or until early stopping; leaves the best weights in the engine.

        Raises:
            FloatingPointError: before an update with a non-finite loss; the last checkpoint is untouched.
            Stopped: where a rank was told to stop; on all ranks after the same step, of which there is a checkpoint.
        """
        if self.progress.step == 0:
            batches = (batch for step in range(CENTRE_BATCHES) for batch in self._own_batches(step))
            inputs = (model_inputs(batch, self.ranks.device) for batch in batches)
            set_centre(self.assembly.model, self.engine, inputs, self.ranks)
        if self.validation_rows is not None and self.progress.step < self.total_steps:
            self._evaluate(TRIAL_BATCHES)
        self.engine.set_training(True)
        with progress("training", self.total_steps, "steps", done=self.progress.step, tenths=False) as advance:
            if self.progress.step:
                self._end_step()  # a run that was stopped has not evaluated after its last step
            while self.progress.step < self.total_steps and not self._stops_early():
                loss_sum, labels, norm, rate = self._step()
                self.progress.unlogged_loss += loss_sum
                self.progress.unlogged_labels += labels
                step = self.progress.step
                advance(1)
                if step % self.training.logging_steps == 0 or step == self.total_steps or step == 1:
                    self._log(self.progress.unlogged_loss / max(self.progress.unlogged_labels, 1), norm, rate)
                    self.progress.unlogged_loss, self.progress.unlogged_labels = 0.0, 0
                self._end_step()
        if self.total_steps == 0 and self.validation_rows is not None:
            self._evaluate_and_compare()
        if self.progress.step < self.total_steps:
            logger.info(
                "stopped early: no better %s in %d evaluations", self.metric, self.training.early_stopping_patience
            )
        if self._saved_step != self.progress.step:
            self._save()
        if self.progress.best_step not in (None, self.progress.step):
            assert self.progress.best_step is not None
            weights, _, _ = load_checkpoint(checkpoint_path(self.output_dir, self.progress.best_step))
            self.engine.load_weights(weights)
        return self.progress

    # -- one step -----------------------------------------------------------------------------------------------

    def _global_batch(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.batches.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.batches.epoch(epoch))
        return self._epoch[1][position]

    def _own_batches(self, step: int) -> list[dict[str, torch.Tensor]]:
        """This rank's share of a step's global batch, collated: one for each accumulation step."""
        shares = divide(
            self._global_batch(step),
            self.ranks.world_size,
            self.ranks.rank,
            self.training.gradient_accumulation_steps,
            self.training.per_device_train_batch_size,
        )
        return [self.assembly.collator([None if n is None else self.train_rows[n] for n in share]) for share in shares]

    def _step(self) -> tuple[float, int, float, float]:
        """(loss sum, labels, gradient norm, learning rate) of one optimizer step over all ranks."""
        step, training = self.progress.step, self.training
        labels = sum(self._counts[number] for number in self._global_batch(step))
        collated = self._own_batches(step)
        real = sum(int(batch["attention_mask"][batch["valid"]].sum()) for batch in collated)
        padded = sum(batch["attention_mask"].numel() for batch in collated)
        samples = sum(int(batch["valid"].sum()) for batch in collated)
        rate = self.engine.set_rate(rate_factor(training, step, self.total_steps))
        torch.manual_seed(hash((training.seed, step, self.ranks.rank)) % 2**63)
        own_loss = 0.0
        with self.meter.step(samples, real, padded):
            for batch in collated:
                output = self.engine(**model_inputs(batch, self.ranks.device), num_items_in_batch=max(labels, 1))
                assert output.loss is not None
                own_loss += float(output.loss.detach())
                self.engine.backward(output.loss)
            loss, *self._votes = self.ranks.sum([own_loss, *votes()])
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} at step {step + 1}, before its update; lower training.learning_rate, "
                    "lengthen the warm-up, or use model.dtype bfloat16 or float32 instead of float16"
                )
            norm = self.engine.step()
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient became {norm} at step {step + 1} while the loss was finite; the last checkpoint is "
                    "untouched; lower training.learning_rate, or use model.dtype bfloat16 or float32"
                )
        self.progress.step += 1
        return loss * labels, labels, norm, rate

    def _end_step(self) -> None:
        """What is due after a step: to stop, an evaluation, a checkpoint."""
        try:
            decide(self._votes)
            if self._evaluation_is_due():
                self._evaluate_and_compare()
            if self._checkpoint_is_due():
                self._save()
        except Stopped as stop:
            if stop.together:
                self._save()
            raise

    # -- around the steps -----------------------------------------------------------------------------------------

    def _log(self, loss: float, norm: float, rate: float) -> None:
        step = self.progress.step
        epoch = step / self.batches.steps_per_epoch
        rates = self.meter.rates()
        self.tracker.log_metrics(
            {
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/gradient_norm": norm,
                "train/epoch": epoch,
                **{f"speed/{name}": value for name, value in rates.items()},
            },
            step,
        )
        peaks = peak_memory(self.ranks.device)
        memory = peaks.get("gpu_allocated_peak_bytes", peaks["resident_peak_bytes"])
        speed = f"{rates['real_tokens_per_second']:,.0f} tokens/s" if rates else "warming up"
        logger.info(
            "step %d/%d  epoch %.2f  loss %.4f  grad %.3f  lr %.2e  %s  peak %.0f MB",
            step, self.total_steps, epoch, loss, norm, rate, speed, memory / 1e6,
        )  # fmt: skip

    def _evaluation_is_due(self) -> bool:
        if self.validation_rows is None:
            return False
        if self.progress.history and self.progress.history[-1]["step"] == self.progress.step:
            return False  # done before the run was stopped
        every = self.training.eval_steps or self.batches.steps_per_epoch
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    def _checkpoint_is_due(self) -> bool:
        if self.training.save_steps is not None:
            return self.progress.step % self.training.save_steps == 0
        return self.validation_rows is None and self.progress.step % self.batches.steps_per_epoch == 0

    def _evaluate(self, max_batches: int | None = None) -> Scores:
        assert self.validation_rows is not None
        return evaluate(self.assembly, self.engine, self.validation_rows, self.ranks, max_batches)

    def _evaluate_and_compare(self) -> None:
        """Evaluates, remembers the best, saves."""
        metrics = self._evaluate().metrics
        value, step = metrics[self.metric], self.progress.step
        better = is_better(self.metric, value, self.progress.best_value, self.training.early_stopping_threshold)
        if better:
            self.progress = replace(self.progress, best_step=step, best_value=value, evaluations_without_improvement=0)
        else:
            self.progress.evaluations_without_improvement += 1
        self.progress.history.append({"step": float(step), **metrics})
        self.tracker.log_metrics({f"validation/{name}": v for name, v in metrics.items()}, step)
        shown = "  ".join(f"{name} {v:.4f}" for name, v in metrics.items())
        logger.info("step %d/%d  validation: %s%s", step, self.total_steps, shown, "  (best)" if better else "")
        if better or self.training.save_steps is None:
            self._save()

    def _stops_early(self) -> bool:
        # The counts come from metrics that every rank works out of the same gathered answers, so this is one
        # decision; a resumed run that had stopped stays stopped.
        patience = self.training.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_improvement >= patience

    def _save(self) -> None:
        if self._saved_step == self.progress.step:
            return
        self.progress.train_seconds = self.meter.train_seconds
        self.progress.real_tokens = self.meter.total_real_tokens
        weights, moments = self.engine.weights(), self.engine.optimizer_state()
        keep = self.training.save_total_limit
        self.ranks.on_main(lambda: save_checkpoint(self.output_dir, weights, moments, self.progress, keep))
        self._saved_step = self.progress.step
