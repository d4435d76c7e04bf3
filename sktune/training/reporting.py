"""What a run says of itself: decisions with their reasons, names and tags for MLflow, results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune.backbone.quantized import FrozenLinear
from sktune.distributed.ranks import Ranks
from sktune.files import ADAPTER_FOLDER, FIGURES_FOLDER, PREDICTIONS_FOLDER, write_whole
from sktune.recipe import Recipe
from sktune.tasks.task import Scores
from sktune.tracking import Tracker
from sktune.tracking.figures import confusion_matrix_figure, per_type_f1_figure
from sktune.tracking.names import COMPARE_PREFIX
from sktune.training.assembly import Assembly
from sktune.training.untrained import Untrained

if TYPE_CHECKING:
    from sktune.training.loop import Loop


def bits_name(recipe: Recipe) -> str:
    """`4bit`, `8bit`, or the backbone's dtype."""
    return f"{recipe.quantization.bits}bit" if recipe.quantization.bits else recipe.model.dtype


def run_name(recipe: Recipe) -> str:
    """method-model-bits-seed, as the MLflow table shows it."""
    model = recipe.model.name_or_path.rstrip("/").rsplit("/", 1)[-1].removeprefix("embedded:")
    return f"{recipe.method.name}-{model}-{bits_name(recipe)}-seed{recipe.training.seed}"


def run_tags(recipe: Recipe, ranks: Ranks) -> dict[str, str]:
    """Tags to filter and group runs by."""
    return {
        "method": recipe.method.name,
        "model": recipe.model.name_or_path,
        "task": recipe.task.name,
        "data": recipe.data.path if recipe.data.name is None else f"{recipe.data.path}/{recipe.data.name}",
        "quantization": bits_name(recipe),
        "seed": str(recipe.training.seed),
        "deepspeed": str(recipe.distributed.deepspeed) if ranks.launched else "none",
        "ranks": str(ranks.world_size),
        "device": ranks.device.type,
    }


def decisions(
    recipe: Recipe,
    ranks: Ranks,
    loop: Loop | Untrained,
    trainable: int,
    total: int,
    ds_config: dict[str, Any] | None,
    checkpoint: Path | None,
) -> Iterator[str]:
    """What was decided for this run and why, a line each."""
    training = recipe.training
    percent = 100 * trainable / max(total, 1)
    yield f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent:.4f}"
    if unused := list(_unused(recipe)):
        yield f"without effect, since the language model's own head answers: {', '.join(unused)}"
    engine = "none" if ds_config is None else f"ZeRO-{ds_config['zero_optimization']['stage']}"
    deepspeed = f"DeepSpeed: {engine} on {ranks.world_size} rank(s): {loop.assembly.sharding.reason}"
    if isinstance(loop, Untrained):
        yield (
            f"{recipe.method.name} trains nothing: no step is taken, no checkpoint written, and of the section "
            "training only the seed and what concerns evaluation have an effect"
        )
        yield deepspeed
        yield from quantization_decisions(loop.assembly, ranks)
        return
    yield (
        f"global batch: {training.per_device_train_batch_size} per rank x {training.gradient_accumulation_steps} "
        f"accumulation x {ranks.world_size} ranks = {loop.batches.global_batch_size}; "
        f"{loop.total_steps} steps, {loop.batches.steps_per_epoch} an epoch"
    )
    yield deepspeed
    yield from quantization_decisions(loop.assembly, ranks)
    yield (f"best checkpoint by: validation {loop.metric}" if loop.validation_rows is not None else "no validation")
    if checkpoint is not None:
        yield f"resuming from {checkpoint}"


def _unused(recipe: Recipe) -> Iterator[str]:
    """Options that were given for other methods' sake: a comparison differs in the method alone."""
    if not recipe.method.answers_in_words:
        return
    for name, keys in {
        "task": ("pooling", "head_dropout"),
        "training": ("head_learning_rate",),
        "data": ("text_template", "pair_template"),
    }.items():
        section = getattr(recipe, name)
        yield from (f"{name}.{key}" for key in keys if key in section.model_fields_set)


def quantization_decisions(assembly: Assembly, ranks: Ranks) -> Iterator[str]:
    """How much of the backbone is packed, and how it is multiplied."""
    linears = [module for module in assembly.model.backbone.modules() if isinstance(module, FrozenLinear)]
    if not linears:
        return
    recipe = assembly.recipe
    packed = sum(linear.weight_elements for linear in linears)
    trainable, total = assembly.model.parameter_counts()
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


def headline(recipe: Recipe, summary: dict[str, Any]) -> dict[str, float]:
    """The few numbers that runs are compared by, those that there are."""
    metric = recipe.training.metric_for_best_model or recipe.task.metrics()[0]
    split = "test" if f"test/{metric}" in summary else "validation"
    numbers = {
        f"{split}_{metric}": summary.get(f"{split}/{metric}"),
        "tokens_per_second": summary.get("speed/real_tokens_per_second"),
        "peak_memory_mb": summary["memory/peak_bytes"] / 1e6,
        "trainable_parameters": summary["trainable_parameters"],
        "adapter_kb": summary["adapter_bytes"] / 1e3,
    }
    return {f"{COMPARE_PREFIX}{name}": float(value) for name, value in numbers.items() if value is not None}


def log_results(
    tracker: Tracker, output_dir: Path, assembly: Assembly, test: Scores | None, summary: dict[str, Any]
) -> None:
    """Sends final numbers, the adapter, test predictions and a picture of them to the tracker. Main rank only."""
    tracker.log_summary(summary)
    tracker.log_metrics(headline(assembly.recipe, summary), int(summary["steps"]))
    tracker.log_artifact(output_dir / ADAPTER_FOLDER)
    if test is None:
        return
    predictions = write_predictions(test, output_dir / PREDICTIONS_FOLDER / "test.jsonl")
    tracker.log_artifact(predictions, PREDICTIONS_FOLDER)
    if test.per_type:
        picture = per_type_f1_figure(test.per_type, output_dir / FIGURES_FOLDER / "test_f1_by_type.png")
        tracker.log_artifact(picture, FIGURES_FOLDER)
    elif test.references and assembly.labels is not None:
        picture = confusion_matrix_figure(
            test.references, test.predictions, assembly.labels, output_dir / FIGURES_FOLDER / "test_confusion.png"
        )
        tracker.log_artifact(picture, FIGURES_FOLDER)


def write_predictions(scores: Scores, path: Path) -> Path:
    """One JSON object per example."""
    lines = (json.dumps(record, ensure_ascii=False) for record in scores.records)
    write_whole(path, "\n".join(lines) + "\n")
    return path
