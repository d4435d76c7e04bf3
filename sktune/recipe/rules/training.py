"""Rules of the run: evaluation, schedule, DeepSpeed and output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sktune.errors import Problem, UserError
from sktune.methods.config import MethodConfig
from sktune.methods.upper_layers import ANY_DEPTH
from sktune.recipe.deepspeed_file import PRESETS, read_deepspeed_file
from sktune.sections import DataSection, DistributedSection, OutputSection, TrainingSection, idle
from sktune.tasks.config import TaskConfig

DEEPSPEED_PRESETS = PRESETS


def best_metric_is_one_of_the_task(training: TrainingSection, task: TaskConfig) -> Iterator[Problem]:
    metric = training.metric_for_best_model
    if metric is not None and metric not in task.metrics():
        yield Problem(
            "training.metric_for_best_model",
            f"is not a metric of {task.name}",
            ", ".join(task.metrics()),
            f"use one of those, or leave it out for {task.metrics()[0]}.",
        )


def evaluation_needs_validation_data(training: TrainingSection, data: DataSection) -> Iterator[Problem]:
    if data.validation is not None:
        return
    for key in ("eval_steps", "early_stopping_patience", "metric_for_best_model"):
        if getattr(training, key) is not None:
            why = "data.validation is null, so nothing is evaluated"
            yield from idle("training", training, (key,), why, "name a split or file in data.validation.")


def threshold_needs_patience(training: TrainingSection) -> Iterator[Problem]:
    if training.early_stopping_patience is None:
        keys, why = ("early_stopping_threshold",), "early stopping is off"
        yield from idle("training", training, keys, why, "set training.early_stopping_patience.")


def warmup_fits_into_training(training: TrainingSection) -> Iterator[Problem]:
    warmup, total = training.warmup_steps, training.max_steps
    if warmup is not None and total is not None and warmup > total:
        yield Problem(
            "training.warmup_steps",
            f"is more than training.max_steps ({total}): the learning rate never arrives",
            f"0 to {total}",
            "lower it, or leave it out for warmup_ratio.",
        )


def head_rate_needs_a_head(training: TrainingSection, task: TaskConfig) -> Iterator[Problem]:
    if not task.has_head and training.head_learning_rate is not None:
        why = f"{task.name} has no head"
        yield from idle("training", training, ("head_learning_rate",), why, "choose a task with a head.")


def states_are_kept_where_something_is_frozen(training: TrainingSection, method: MethodConfig) -> Iterator[Problem]:
    wanted = (
        ("frozen_states", training.frozen_states in ("memory", "disk"), "off or auto; memory and disk"),
        ("frozen_states_in_8bit", training.frozen_states_in_8bit, "false; true"),
        ("stream_frozen_blocks", training.stream_frozen_blocks, "false; true"),
    )
    for field, is_wanted, allowed in wanted:
        if is_wanted and method.frozen_blocks(ANY_DEPTH) == 0:
            yield Problem(
                f"training.{field}",
                f"{method.name} as it is set changes what every block reads, so no states stay the same",
                f"{allowed} with method.layers or no method but a head, and with semantics: cached",
                "set method.layers (1/2, for example), or leave it out.",
            )
    if training.frozen_states not in ("disk", "auto"):
        why = f"frozen_states is {training.frozen_states}"
        yield from idle("training", training, ("frozen_states_dir",), why, "set training.frozen_states: disk.")
    if training.frozen_states == "off":
        cure = "set training.frozen_states: auto, memory or disk."
        idle_then = ("frozen_states_in_8bit", "stream_frozen_blocks")
        yield from idle("training", training, idle_then, "frozen_states is off", cure)
    if training.stream_frozen_blocks and training.frozen_states_in_8bit:
        yield Problem(
            "training.frozen_states_in_8bit",
            "with stream_frozen_blocks the states would be rounded after every block, not once",
            "false with stream_frozen_blocks",
            "leave one of the two out.",
        )


def deepspeed_is_a_preset_or_a_file(distributed: DistributedSection) -> Iterator[Problem]:
    choice = distributed.deepspeed
    if choice is None or choice in DEEPSPEED_PRESETS:
        return
    path = Path(choice)
    if path.suffix != ".json" or not path.is_file():
        yield Problem(
            "distributed.deepspeed",
            "no such DeepSpeed file" if path.suffix == ".json" else "neither a preset nor a .json file",
            f"{', '.join(DEEPSPEED_PRESETS)}, null, or an existing .json file (seen from the working folder)",
            "use a preset, or correct the path.",
        )
        return
    try:
        read_deepspeed_file(path)
    except UserError as error:
        what = str(error).removeprefix(f"distributed.deepspeed: {path}: ")
        yield Problem("distributed.deepspeed", f"cannot be used: {what}", cure="correct the file, or use a preset.")


def sharding_is_up_to_zero3(distributed: DistributedSection) -> Iterator[Problem]:
    """`shard_backbone` speaks of ZeRO-3, the only stage that shards what is frozen."""
    choice, name = distributed.shard_backbone, distributed.deepspeed
    if name is None or name == "zero2":
        if choice is True and "shard_backbone" in distributed.model_fields_set:
            yield Problem(
                "distributed.shard_backbone",
                f"cannot be true with distributed.deepspeed: {name or 'null'}, which copies the model to every rank",
                "true, false or auto with deepspeed: zero3",
                "set distributed.deepspeed: zero3, or leave shard_backbone out.",
                idle=True,
            )
        elif choice is not True:
            why = f"distributed.deepspeed: {name or 'null'} copies the model to every rank anyway"
            yield from idle("distributed", distributed, ("shard_backbone",), why, "set distributed.deepspeed: zero3.")
    elif name != "zero3" and choice is not True:
        yield Problem(
            "distributed.shard_backbone",
            f"cannot be {str(choice).lower()} with distributed.deepspeed: {name}",
            "false and auto with deepspeed: zero3; true",
            "set distributed.deepspeed: zero3 (shards that are offloaded are shards; a file of your own says its "
            "stage itself), or shard_backbone: true.",
        )


def output_has_a_name(output: OutputSection) -> Iterator[Problem]:
    if not output.dir.strip():
        yield Problem("output.dir", "is blank", "a folder for this run", "for example `dir: runs/my_run`.")


def resume_keeps_what_is_there(training: TrainingSection, output: OutputSection) -> Iterator[Problem]:
    if training.resume == "auto" and output.overwrite:
        yield Problem(
            "output.overwrite",
            "a folder cannot be both started anew and resumed (training.resume: auto)",
            "false with training.resume: auto",
            "set output.overwrite: false, or training.resume: never.",
            idle=True,
        )


RULES = (
    best_metric_is_one_of_the_task,
    evaluation_needs_validation_data,
    threshold_needs_patience,
    warmup_fits_into_training,
    head_rate_needs_a_head,
    states_are_kept_where_something_is_frozen,
    deepspeed_is_a_preset_or_a_file,
    sharding_is_up_to_zero3,
    output_has_a_name,
    resume_keeps_what_is_there,
)
