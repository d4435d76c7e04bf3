"""A run from recipe to adapter folder and MLflow run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sktune.data import EncodedSplit
from sktune.distributed.deepspeed_config import size_deepspeed_config
from sktune.distributed.deepspeed_engine import DeepSpeedEngine
from sktune.distributed.engine import Engine, State
from sktune.distributed.optimizer import build_optimizer
from sktune.distributed.plain_engine import PlainEngine
from sktune.distributed.ranks import Ranks
from sktune.files import ADAPTER_FOLDER, DEEPSPEED_FILE, SUMMARY_FILE, write_whole
from sktune.model.tuned_model import fold_centre, put_weights
from sktune.recipe import LoadedRecipe
from sktune.tasks.task import Scores
from sktune.tracking import Tracker, start_tracking
from sktune.training import stopping
from sktune.training.assembly import Assembly, assemble, save_adapter
from sktune.training.checkpoint import Progress, load_checkpoint
from sktune.training.evaluation import evaluate
from sktune.training.head_start import set_prior
from sktune.training.loop import Loop, plan_steps
from sktune.training.meters import ThroughputMeter, frozen_bytes, peak_memory, reset_peak_memory
from sktune.training.output import claim_output
from sktune.training.reporting import decisions, log_results, run_name, run_tags
from sktune.training.untrained import Untrained

logger = logging.getLogger(__name__)


def train(loaded: LoadedRecipe, ranks: Ranks, tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a recipe on this rank and returns the summary that is also written to `summary.json`.

    Args:
        loaded: the recipe, and how it was written.
        ranks: this process.
        tags: of the MLflow run, besides those of every run.

    Raises:
        ValueError: for whatever the user can correct.
        FloatingPointError: where the loss stops being a number.
        Stopped: where the command was told to stop.
    """
    output_dir = Path(loaded.recipe.output.dir)
    with claim_output(loaded, output_dir, ranks) as checkpoint:
        return _run(loaded, ranks, tags or {}, output_dir, checkpoint)


def _run(
    loaded: LoadedRecipe, ranks: Ranks, tags: Mapping[str, str], output_dir: Path, checkpoint: Path | None
) -> dict[str, Any]:
    recipe = loaded.recipe
    weights, moments, progress = load_checkpoint(checkpoint) if checkpoint else ({}, {}, Progress())
    tracker: Tracker | None = None
    started = time.time()
    try:
        start = partial(
            start_tracking,
            recipe.tracking,
            recipe_params=loaded.loggable(),
            tags={**run_tags(recipe, ranks), **tags},
            run_name=run_name(recipe),
            run_id=progress.run_id,
            output_dir=output_dir,
            is_main=ranks.is_main,
        )
        tracker = ranks.on_main(start) or start()
        assembly = assemble(recipe, ranks)
        encoded = _encode_training(assembly)
        if checkpoint:
            put_weights(assembly.model, weights, str(checkpoint))
        elif encoded is not None:
            set_prior(assembly.model, encoded.rows)
        engine, ds_config = build_engine(assembly, ranks)
        if checkpoint:
            engine.load_optimizer_state(moments, progress.step)
        loop = _build_loop(assembly, encoded, engine, ranks, tracker, output_dir, progress)
        trainable, total = assembly.model.parameter_counts()
        for line in decisions(recipe, ranks, loop, trainable, total, ds_config, checkpoint):
            logger.info(line)
        stage = "none" if ds_config is None else str(ds_config["zero_optimization"].get("stage", 0))
        tracker.set_tags({"zero_stage": stage})
        if ds_config is not None and ranks.is_main:
            write_whole(output_dir / DEEPSPEED_FILE, json.dumps(ds_config, indent=1))
            tracker.log_artifact(output_dir / DEEPSPEED_FILE)
        at_rest = frozen_bytes(assembly.model.backbone)
        progress = loop.run()
        final_weights = fold_centre(engine.weights())
        if assembly.model.constants():
            engine.load_weights(final_weights)  # what is scored is what is saved
        test_rows = assembly.encode_for_scoring(assembly.raw.test, "test") if assembly.raw else None
        test = None if test_rows is None else evaluate(assembly, engine, test_rows, ranks)
        with stopping.deferred():  # what has come this far is completed
            summary = _summarize(loop, progress, test, ranks, trainable, total, at_rest, time.time() - started)
            summary["adapter_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in final_weights.values())
            ranks.on_main(partial(_keep_results, loaded, tracker, assembly, final_weights, test, summary))
            tracker.finish("FINISHED")
            ranks.barrier()
        return summary
    except BaseException as error:
        if tracker is not None:
            # When one rank fails, the launcher terminates the others: the main one still has to say so to MLflow.
            with stopping.deferred(late=False):
                killed = bool(stopping.requested()) or isinstance(error, KeyboardInterrupt | SystemExit)
                tracker.finish("KILLED" if killed else "FAILED", f"{type(error).__name__}: {error}")
        raise


def _keep_results(
    loaded: LoadedRecipe,
    tracker: Tracker,
    assembly: Assembly,
    weights: State,
    test: Scores | None,
    summary: dict[str, Any],
) -> None:
    output_dir = Path(loaded.recipe.output.dir)
    metrics = {key: value for key, value in summary.items() if key.startswith(("validation/", "test/"))}
    save_adapter(output_dir / ADAPTER_FOLDER, loaded, weights, assembly.labels, metrics)
    write_whole(output_dir / SUMMARY_FILE, json.dumps(summary, indent=1))
    log_results(tracker, output_dir, assembly, test, summary)


def build_engine(assembly: Assembly, ranks: Ranks) -> tuple[Engine, dict[str, Any] | None]:
    """The engine the recipe asks for, and its DeepSpeed configuration (None for plain PyTorch)."""
    recipe = assembly.recipe
    parameters = assembly.model.trainable_parameters()
    optimizer = build_optimizer(parameters, recipe.training)
    for part in assembly.model.children():
        if part is not assembly.model.backbone:  # it is there already, whole or in shares
            part.to(ranks.device)
    sharding = assembly.sharding
    # Without an optimizer there is nothing for ZeRO-1 and -2 to share.
    if sharding.config is None or (optimizer is None and not sharding.sharded):
        return PlainEngine(assembly.model, optimizer, recipe.training.max_grad_norm, ranks), None
    config = size_deepspeed_config(
        sharding.config,
        shipped=sharding.shipped,
        training=recipe.training,
        backbone=assembly.model.backbone,
        trainable=sum(p.numel() for p in parameters.values()),
        ranks=ranks.world_size,
    )
    return DeepSpeedEngine(assembly.model, optimizer, config, ranks), config


def _encode_training(assembly: Assembly) -> EncodedSplit | None:
    """The training split, or None where nothing trains; what was noticed goes to the log."""
    assert assembly.raw is not None
    if not assembly.model.trainable_parameters():
        return None
    encoded = assembly.encode(assembly.raw.train, "train")
    for line in encoded.report:
        logger.info(line)
    return encoded


def _build_loop(
    assembly: Assembly,
    encoded: EncodedSplit | None,
    engine: Engine,
    ranks: Ranks,
    tracker: Tracker,
    output_dir: Path,
    progress: Progress,
) -> Loop | Untrained:
    assert assembly.raw is not None
    progress.run_id = ranks.broadcast(tracker.run_id)
    progress.seed = assembly.recipe.training.seed
    progress.world_size = ranks.world_size
    meter = ThroughputMeter(ranks)
    meter.train_seconds, meter.total_real_tokens = progress.train_seconds, progress.real_tokens
    validation_rows = assembly.encode_for_scoring(assembly.raw.validation, "validation")
    if encoded is None:
        reset_peak_memory(ranks.device)
        return Untrained(assembly, validation_rows, engine, ranks, tracker, progress, meter)
    rows = list(encoded.rows)
    batches, total_steps = plan_steps(assembly, encoded.lengths, ranks.world_size)
    if progress.step and progress.global_batch_size != batches.global_batch_size:
        logger.warning(
            "resuming with a global batch of %d instead of %d: the data goes on from step %d of the new order",
            batches.global_batch_size, progress.global_batch_size, progress.step,
        )  # fmt: skip
    progress.global_batch_size = batches.global_batch_size
    reset_peak_memory(ranks.device)
    return Loop(
        assembly=assembly,
        train_rows=rows,
        validation_rows=validation_rows,
        engine=engine,
        ranks=ranks,
        tracker=tracker,
        output_dir=output_dir,
        batches=batches,
        total_steps=total_steps,
        progress=progress,
        meter=meter,
    )


def _summarize(
    loop: Loop | Untrained,
    progress: Progress,
    test: Scores | None,
    ranks: Ranks,
    trainable: int,
    total: int,
    at_rest: int,
    wall_seconds: float,
) -> dict[str, Any]:
    """Final numbers of a run; collective."""
    summary: dict[str, Any] = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "wall_seconds": wall_seconds,
        "train_seconds": loop.meter.train_seconds,
        "real_tokens": ranks.sum([float(loop.meter.total_real_tokens)])[0],
    }
    best = next((h for h in progress.history if h["step"] == progress.best_step), None)
    if best is not None:
        summary |= {f"validation/{name}": value for name, value in best.items() if name != "step"}
    if test is not None:
        summary |= {f"test/{name}": value for name, value in test.metrics.items()}
    summary |= {f"speed/{name}": value for name, value in loop.meter.rates().items()}
    per_rank = ranks.gather({**peak_memory(ranks.device), "frozen_bytes": float(at_rest)})
    for name in per_rank[0]:
        summary[f"memory/{name}"] = max(entry[name] for entry in per_rank)
        for rank, entry in enumerate(per_rank):
            summary[f"memory/rank{rank}/{name}"] = entry[name]
    own = "gpu_allocated_peak_bytes" if ranks.device.type == "cuda" else "resident_peak_bytes"
    summary["memory/peak_bytes"] = summary[f"memory/{own}"]
    return summary
