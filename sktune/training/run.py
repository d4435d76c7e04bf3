"""A run from recipe to adapter folder and MLflow run: `train` is the whole of it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sktune.data import Row
from sktune.distributed.engine import State
from sktune.distributed.optimizer import rate_factor
from sktune.distributed.ranks import Ranks
from sktune.files import ADAPTER_FOLDER, DEEPSPEED_FILE, SUMMARY_FILE, write_whole
from sktune.model.adapter import write_adapter
from sktune.model.tuned_model import fold_centre, put_weights
from sktune.progress import progress as shown_progress
from sktune.recipe import LoadedRecipe
from sktune.tasks.task import Scores
from sktune.tracking import Tracker, names
from sktune.training.checkpoint import Checkpoints, Progress
from sktune.training.evaluate import evaluate, model_inputs
from sktune.training.fingerprint import compare, datasets, fingerprint
from sktune.training.frozen_states import forget_frozen_states, keep_frozen_states
from sktune.training.head_start import set_centre, set_prior, weigh_classes
from sktune.training.meters import ThroughputMeter, frozen_bytes, memory_in_use, peak_memory, reset_peak_memory
from sktune.training.output import claim_output
from sktune.training.report import decisions, log_results, summarize
from sktune.training.setup import Setup, build_engine, prepare, try_step_zero
from sktune.training.steps import Steps, epochs, step_seed
from sktune.training.stopping import Stopped, decide, deferred, votes
from sktune.training.tracked import tracked
from sktune.training.underflow import watched_for_underflow

logger = logging.getLogger(__name__)

TRIAL_BATCHES = 2
"""Evaluation batches tried before the first step, so that a crash in evaluation costs seconds."""


def train(
    loaded: LoadedRecipe, ranks: Ranks, tags: Mapping[str, str] | None = None, shared_states: Path | None = None
) -> dict[str, Any]:
    """Runs a recipe on this rank and returns the summary that is also written to `summary.json`.

    A step's batch, learning rate and random numbers are functions of the seed and the step alone. So batches cut 4x1,
    1x4 or over 2 ranks give one trajectory, and a resumed run needs nothing but weights, moments and the step. A run
    that trains nothing is one of zero steps: it is evaluated.

    Args:
        loaded: the recipe, and how it was written.
        ranks: this process.
        tags: of the MLflow run, besides those of every run.
        shared_states: a folder where this run and others find each other's frozen states (docs/depth.md).

    Raises:
        UserError: for whatever the user can correct.
        FloatingPointError: before an update with a non-finite loss; the last checkpoint is untouched.
        Stopped: where a rank was told to stop; during training on all ranks after the same step, of which there is a
            checkpoint.
    """
    recipe, training, output_dir = loaded.recipe, loaded.recipe.training, Path(loaded.recipe.output.dir)
    patience, started = training.early_stopping_patience, time.time()
    with (
        claim_output(loaded, output_dir, ranks) as (checkpoint, weights, moments, progress),
        tracked(loaded, ranks, progress.run_id, tags or {}) as tracker,
    ):
        # From the recipe to a model in an engine, as the checkpoint left it or at its start.
        progress.run_id = ranks.broadcast(tracker.run_id)
        setup = prepare(recipe, ranks, for_training=True)
        assert setup.raw is not None
        rows = setup.training_rows()
        if rows is not None:
            weigh_classes(setup.model, recipe.task, setup.labels, rows)
        if checkpoint:
            put_weights(setup.model, weights, str(checkpoint))
        elif rows is not None:
            set_prior(setup.model, rows)
        engine, ds_config = build_engine(setup, ranks)
        if checkpoint:
            engine.load_optimizer_state(moments, progress.step)
        else:
            try_step_zero(setup, engine, ranks)
        validation = setup.encode_for_scoring(setup.raw.validation, "validation")
        read = fingerprint(setup, rows, validation)
        if checkpoint:
            compare(progress.read, read, str(checkpoint))
        progress.read = read
        if ranks.is_main:
            tracker.log_datasets(datasets(recipe.data, setup.raw))
        test_rows = setup.encode_for_scoring(setup.raw.test, "test")
        splits = {"train": rows, "validation": validation, "test": test_rows}
        times = epochs(training, rows, ranks)
        splits = keep_frozen_states(setup, engine, splits, ranks, times, shared_states)
        rows, validation, test_rows = (splits[name] for name in ("train", "validation", "test"))
        steps = None if rows is None else Steps(setup, rows, ranks)
        total = 0 if steps is None else steps.total
        if steps is not None:
            _note_batch(progress, steps)
        reset_peak_memory(ranks.device)
        for line in decisions(setup, ranks, steps, ds_config, checkpoint):
            logger.info(line)
        _keep_engine_config(ds_config, output_dir, tracker, ranks)
        at_rest = frozen_bytes(setup.model.backbone)
        meter = ThroughputMeter(ranks, progress.train_seconds, progress.real_tokens)
        checkpoints = Checkpoints(output_dir, training.save_total_limit, engine, ranks, progress)

        with deferred():
            if steps is not None and progress.step == 0:
                set_centre(setup.model, engine, steps, ranks)
            if validation is not None and progress.step < total:
                evaluate(setup, engine, validation, ranks, TRIAL_BATCHES)
            engine.set_training(True)
            stop_votes = [0.0, 0.0]  # all ranks', see `stopping`
            with (
                watched_for_underflow(setup.model),
                shown_progress("training", total, "steps", done=progress.step, tenths=False) as advance,
            ):
                while True:
                    # What is due after a step, and where no step is to come: to stop, an evaluation, a checkpoint.
                    with _saved_where_stopped(checkpoints):
                        decide(stop_votes)
                        if validation is not None and _evaluation_is_due(progress, steps, training.eval_steps):
                            metrics = evaluate(setup, engine, validation, ranks).metrics
                            better = progress.note(metrics, setup.metric, training.early_stopping_threshold)
                            _log_validation(tracker, progress, total, metrics, better)
                            if better or training.save_steps is None:
                                checkpoints.save()
                        if steps is not None and _checkpoint_is_due(progress, steps, training.save_steps, validation):
                            checkpoints.save()
                    if steps is None or progress.step >= total or progress.stops_early(patience):
                        break

                    # One optimizer step over all ranks.
                    step, labels = progress.step, steps.labels(progress.step)
                    rate = engine.set_rate(rate_factor(training, step, total))
                    torch.manual_seed(step_seed(training.seed, step, ranks.rank))
                    own_loss = 0.0
                    with meter.step(partial(steps.own, step)) as batches:
                        for batch in batches:
                            output = engine(**model_inputs(batch, ranks.device), num_items_in_batch=max(labels, 1))
                            assert output.loss is not None
                            own_loss += float(output.loss.detach())
                            engine.backward(output.loss)
                        loss, *stop_votes = ranks.sum([own_loss, *votes()])
                        _check_loss(loss, step)
                        norm = engine.step()
                        _check_gradient(norm, step)
                    progress.step += 1
                    progress.train_seconds, progress.real_tokens = meter.train_seconds, meter.total_real_tokens
                    progress.unlogged_loss += loss * labels
                    progress.unlogged_labels += labels
                    advance(1)
                    if progress.step % training.logging_steps == 0 or progress.step in (1, total):
                        _log_step(tracker, progress, steps, meter, norm, rate)
            if progress.step < total:
                logger.info("stopped early: no better %s in %d evaluations", setup.metric, patience)
            checkpoints.save()
            checkpoints.load_best()

        final_weights = fold_centre(engine.weights())
        if setup.model.constants():
            engine.load_weights(final_weights)  # what is scored is what is saved
        test = None if test_rows is None else evaluate(setup, engine, test_rows, ranks)
        with deferred():  # what has come this far is completed
            summary = summarize(setup, ranks, progress, meter, test, at_rest)
            summary[names.WALL_SECONDS] = time.time() - started
            summary[names.ADAPTER_BYTES] = sum(value.numel() * value.element_size() for value in final_weights.values())
            ranks.on_main(partial(_keep_results, loaded, tracker, setup, final_weights, test, summary))
            forget_frozen_states(recipe, ranks)
            tracker.finish("FINISHED")
            ranks.barrier()
        return summary


# -- what is due --------------------------------------------------------------------------------------------------


def _evaluation_is_due(progress: Progress, steps: Steps | None, every: int | None) -> bool:
    if progress.is_evaluated:
        return False  # done before the run was stopped
    if steps is None or progress.step == steps.total:
        return True
    return progress.step > 0 and progress.step % (every or steps.per_epoch) == 0


def _checkpoint_is_due(progress: Progress, steps: Steps, every: int | None, validation: Sequence[Row] | None) -> bool:
    if every is not None:
        return progress.step % every == 0
    return validation is None and progress.step % steps.per_epoch == 0


@contextmanager
def _saved_where_stopped(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        yield
    except Stopped as stop:
        if stop.together:
            checkpoints.save()
        raise


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} at step {step + 1}, before its update; lower training.learning_rate, "
            "lengthen the warm-up, or use model.dtype bfloat16 or float32 instead of float16"
        )


def _check_gradient(norm: float, step: int) -> None:
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient became {norm} at step {step + 1} while the loss was finite; the last checkpoint is "
            "untouched; lower training.learning_rate, or use model.dtype bfloat16 or float32"
        )


# -- what is kept -------------------------------------------------------------------------------------------------


def _note_batch(progress: Progress, steps: Steps) -> None:
    if progress.step and progress.global_batch_size != steps.global_batch_size:
        logger.warning(
            "resuming with a global batch of %d instead of %d: the data goes on from step %d of the new order",
            steps.global_batch_size, progress.global_batch_size, progress.step,
        )  # fmt: skip
    progress.global_batch_size, progress.world_size = steps.global_batch_size, steps.ranks.world_size


def _keep_engine_config(ds_config: dict[str, Any] | None, output_dir: Path, tracker: Tracker, ranks: Ranks) -> None:
    stage = "none" if ds_config is None else str(ds_config["zero_optimization"].get("stage", 0))
    tracker.set_tags({names.ZERO_STAGE_TAG: stage})
    if ds_config is not None and ranks.is_main:
        write_whole(output_dir / DEEPSPEED_FILE, json.dumps(ds_config, indent=1))
        tracker.log_artifact(output_dir / DEEPSPEED_FILE)


def _log_step(
    tracker: Tracker, progress: Progress, steps: Steps, meter: ThroughputMeter, norm: float, rate: float
) -> None:
    """Logs what has come since the last call; collective."""
    step, epoch, rates = progress.step, progress.step / steps.per_epoch, meter.rates()
    loss = progress.unlogged_loss / max(progress.unlogged_labels, 1)
    progress.unlogged_loss, progress.unlogged_labels = 0.0, 0
    tracker.log_metrics(
        {
            names.LOSS: loss,
            names.LEARNING_RATE: rate,
            names.GRADIENT_NORM: norm,
            names.EPOCH: epoch,
            **{names.speed(name): value for name, value in rates.items()},
            **{names.memory(name): value for name, value in memory_in_use(meter.ranks.device).items()},
        },
        step,
    )
    peaks = peak_memory(meter.ranks.device)
    memory = peaks.get("gpu_allocated_peak_bytes", peaks["resident_peak_bytes"])
    speed = f"{rates['real_tokens_per_second']:,.0f} tokens/s" if rates else "warming up"
    logger.info(
        "step %d/%d  epoch %.2f  loss %.4f  grad %.3f  lr %.2e  %s  peak %.0f MB",
        step, steps.total, epoch, loss, norm, rate, speed, memory / 1e6,
    )  # fmt: skip


def _log_validation(
    tracker: Tracker, progress: Progress, total: int, metrics: Mapping[str, float], better: bool
) -> None:
    tracker.log_metrics({names.of_split("validation", name): value for name, value in metrics.items()}, progress.step)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    logger.info("step %d/%d  validation: %s%s", progress.step, total, shown, "  (best)" if better else "")


def _keep_results(
    loaded: LoadedRecipe,
    tracker: Tracker,
    setup: Setup,
    weights: State,
    test: Scores | None,
    summary: dict[str, Any],
) -> None:
    output_dir = Path(loaded.recipe.output.dir)
    scores = (names.of_split("validation"), names.of_split("test"))
    metrics = {key: value for key, value in summary.items() if key.startswith(scores)}
    write_adapter(output_dir / ADAPTER_FOLDER, loaded, weights, setup.labels, metrics, setup.belongs_to())
    write_whole(output_dir / SUMMARY_FILE, json.dumps(summary, indent=1))
    log_results(tracker, output_dir, setup, test, summary)
