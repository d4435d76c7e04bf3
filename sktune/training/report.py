"""What a run says of itself: decisions with their reasons, and results."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sktune.backbone.quantized import FrozenLinear
from sktune.data import Example
from sktune.distributed.ranks import Ranks
from sktune.errors import named_line
from sktune.files import (
    ADAPTER_FOLDER,
    CONFUSION_FIGURE_FILE,
    F1_FIGURE_FILE,
    FIGURES_FOLDER,
    MODEL_FOLDER,
    PREDICTIONS_FOLDER,
    TEST_PREDICTIONS_FILE,
    write_whole,
)
from sktune.recipe import Recipe
from sktune.tasks.task import Scores
from sktune.tracking import Tracker, names
from sktune.training.checkpoint import Progress
from sktune.training.meters import ThroughputMeter, peak_memory
from sktune.training.setup import Setup
from sktune.training.steps import Steps

logger = logging.getLogger(__name__)


def decisions(
    setup: Setup, ranks: Ranks, steps: Steps | None, ds_config: dict[str, Any] | None, checkpoint: Path | None
) -> Iterator[str]:
    """What was decided for this run and why, a line each; `steps` is None where nothing trains."""
    recipe, training = setup.recipe, setup.recipe.training
    trainable, total = setup.model.parameter_counts()
    percent = 100 * trainable / max(total, 1)
    yield f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent:.4f}"
    if unused := list(_unused(recipe)):
        yield f"without effect, since the language model's own head answers: {', '.join(unused)}"
    if steps is None:
        yield (
            f"{recipe.method.name} trains nothing: no step is taken, no checkpoint written, and of the section "
            "training only the seed and what concerns evaluation have an effect"
        )
    else:
        yield (
            f"global batch: {training.per_device_train_batch_size} per rank x {training.gradient_accumulation_steps} "
            f"accumulation x {ranks.world_size} ranks = {steps.global_batch_size}; "
            f"{steps.total} steps, {steps.per_epoch} an epoch"
        )
    engine = "none" if ds_config is None else f"ZeRO-{ds_config['zero_optimization']['stage']}"
    yield f"DeepSpeed: {engine} on {ranks.world_size} rank(s): {setup.sharding.reason}"
    yield from quantization_decisions(setup, ranks)
    if steps is not None:
        assert setup.raw is not None
        yield "no validation" if setup.raw.validation is None else f"best checkpoint by: validation {setup.metric}"
    if checkpoint is not None:
        yield f"resuming from {checkpoint}"


def _unused(recipe: Recipe) -> Iterator[str]:
    """Options that were given for other methods' sake: a comparison differs in the method alone."""
    if not recipe.method.answers_in_words:
        return
    for name, keys in {
        "task": ("pooling", "head_dropout", "class_weights", "label_smoothing"),
        "training": ("head_learning_rate",),
        "data": ("text_template", "pair_template"),
    }.items():
        section = getattr(recipe, name)
        yield from (f"{name}.{key}" for key in keys if key in section.model_fields_set)


def quantization_decisions(setup: Setup, ranks: Ranks) -> Iterator[str]:
    """How much of the backbone is packed, and how it is multiplied."""
    linears = [module for module in setup.model.backbone.modules() if isinstance(module, FrozenLinear)]
    if not linears:
        return
    recipe = setup.recipe
    packed = sum(linear.weight_elements for linear in linears)
    trainable, total = setup.model.parameter_counts()
    share = 100 * packed / (total - trainable)
    yield (
        f"quantized: {len(linears)} linear layers, {packed:,} numbers in {recipe.quantization.bits} bits "
        f"({share:.1f}% of the backbone); the rest is {recipe.model.dtype}"
    )
    if recipe.quantization.load_in_8bit and ranks.device.type != "cuda":
        yield (
            "8-bit products: weights are dequantized and inputs keep their precision; LLM.int8 and its "
            "llm_int8_threshold are for GPUs"
        )


def summarize(
    setup: Setup, ranks: Ranks, progress: Progress, meter: ThroughputMeter, test: Scores | None, at_rest: int
) -> dict[str, Any]:
    """Final numbers of a run; collective."""
    trainable, total = setup.model.parameter_counts()
    summary: dict[str, Any] = {
        names.STEPS: progress.step,
        names.BEST_STEP: progress.best_step,
        names.TRAINABLE_PARAMETERS: trainable,
        names.ALL_PARAMETERS: total,
        names.TRAIN_SECONDS: progress.train_seconds,
        names.REAL_TOKENS: ranks.sum([float(progress.real_tokens)])[0],
    }
    best = next((h for h in progress.history if h["step"] == progress.best_step), None)
    if best is not None:
        summary |= {names.of_split("validation", name): value for name, value in best.items() if name != "step"}
    if test is not None:
        summary |= {names.of_split("test", name): value for name, value in test.metrics.items()}
    summary |= {names.speed(name): value for name, value in meter.rates().items()}
    per_rank = ranks.gather({**peak_memory(ranks.device), "frozen_bytes": float(at_rest)})
    for name in per_rank[0]:
        summary[names.memory(name)] = max(entry[name] for entry in per_rank)
        for rank, entry in enumerate(per_rank):
            summary[names.memory(name, rank)] = entry[name]
    own = "gpu_allocated_peak_bytes" if ranks.device.type == "cuda" else "resident_peak_bytes"
    summary[names.PEAK_BYTES] = summary[names.memory(own)]
    return summary


def headline(metric: str, summary: dict[str, Any]) -> dict[str, float]:
    """The few numbers that runs are compared by, those that there are; `metric` is the one of the best checkpoint."""
    split = "test" if names.of_split("test", metric) in summary else "validation"
    numbers = {
        names.compared_score(split, metric): summary.get(names.of_split(split, metric)),
        names.COMPARE_TOKENS_PER_SECOND: summary.get(names.TOKENS_PER_SECOND),
        names.COMPARE_PEAK_MEMORY_MB: summary[names.PEAK_BYTES] / 1e6,
        names.COMPARE_TRAINABLE_PARAMETERS: summary[names.TRAINABLE_PARAMETERS],
        names.COMPARE_ADAPTER_KB: summary[names.ADAPTER_BYTES] / 1e3,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def log_results(tracker: Tracker, output_dir: Path, setup: Setup, test: Scores | None, summary: dict[str, Any]) -> None:
    """Sends final numbers, the adapter, test predictions and a picture of them to the tracker. Main rank only."""
    tracker.log_summary(summary)
    tracker.log_metrics(headline(setup.metric, summary), int(summary[names.STEPS]))
    tracker.log_artifact(output_dir / ADAPTER_FOLDER)
    _log_model(tracker, output_dir, setup.recipe, int(summary[names.BEST_STEP] or summary[names.STEPS]))
    if test is None:
        return
    assert setup.raw is not None and setup.raw.test is not None
    predictions = write_predictions(test, setup.raw.test, output_dir / PREDICTIONS_FOLDER / TEST_PREDICTIONS_FILE)
    tracker.log_artifact(predictions, PREDICTIONS_FOLDER)
    try:
        picture = _draw(test, setup.labels, output_dir / FIGURES_FOLDER)
    except Exception as error:  # whatever a drawing library comes up with: the run has its results all the same
        logger.warning(
            "no picture of the test scores was drawn (%s); the run is complete without it", named_line(error)
        )
        return
    if picture is not None:
        tracker.log_artifact(picture, FIGURES_FOLDER)


def _log_model(tracker: Tracker, output_dir: Path, recipe: Recipe, step: int) -> None:
    """Hands over the adapter as a model that MLflow can load; weights of a whole model are not uploaded twice."""
    if not recipe.tracking.enabled or recipe.method.trains_backbone:
        return
    from sktune.tracking.model_folder import write_model_folder  # loads mlflow.pyfunc

    folder = output_dir / MODEL_FOLDER
    try:
        write_model_folder(folder, output_dir / ADAPTER_FOLDER, recipe)
    except Exception as error:  # whatever MLflow comes up with: the run has its results all the same
        logger.warning("no model of MLflow's was written (%s); the run is complete without it", named_line(error))
        return
    tracker.log_model(folder, step)


def _draw(test: Scores, labels: Sequence[str] | None, folder: Path) -> Path | None:
    """The picture of a test split's scores, where its task has one."""
    from sktune.tracking.figures import confusion_matrix_figure, per_type_f1_figure  # loads matplotlib

    if test.per_type:
        return per_type_f1_figure(test.per_type, folder / F1_FIGURE_FILE)
    if test.references and labels is not None:
        return confusion_matrix_figure(test.references, test.predictions, labels, folder / CONFUSION_FIGURE_FILE)
    return None


def write_predictions(scores: Scores, examples: Sequence[Example], path: Path) -> Path:
    """One JSON object per example of the split, `row` as the file or hub split counts it."""
    lines = (
        json.dumps({**record, "row": examples[record["row"]].row}, ensure_ascii=False) for record in scores.records
    )
    write_whole(path, "\n".join(lines) + "\n")
    return path
