"""Every name sktune writes to MLflow or to the local record, and the rules names and values follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeVar

from sktune.errors import hide_password

# Tags of every run.
METHOD_TAG = "method"
MODEL_TAG = "model"
TASK_TAG = "task"
DATA_TAG = "data"
QUANTIZATION_TAG = "quantization"
SEED_TAG = "seed"
DEEPSPEED_TAG = "deepspeed"
ZERO_STAGE_TAG = "zero_stage"
RANKS_TAG = "ranks"
DEVICE_TAG = "device"
ERROR_TAG = "error"
LOCAL_ID_TAG = "sktune.local_id"
RESUMED_PREFIX = "resumed."
VERSION_PREFIX = "version."
HOST_TAG = "host.name"
GPUS_TAG = "host.gpus"
# MLflow's own tags: its pages show them in columns of their own.
GIT_COMMIT_TAG = "mlflow.source.git.commit"
SOURCE_NAME_TAG = "mlflow.source.name"
USER_TAG = "mlflow.user"
DESCRIPTION_TAG = "mlflow.note.content"
# Of an experiment: its page then opens on runs and charts, not on traces of calls.
EXPERIMENT_KIND_TAG = "mlflow.experimentKind"
TRAINING = "custom_model_development"

# Of the runs of a comparison (sktune.comparison).
PARENT_RUN_TAG = "mlflow.parentRunId"
PARENT_LOCAL_ID_TAG = "sktune.parent_local_id"
COMPARISON_TAG = "sktune.comparison"
COMPARISON_TASK_TAG = f"{COMPARISON_TAG}.task"
COMPARISON_METRIC_TAG = f"{COMPARISON_TAG}.metric"
COMPARISON_SELECT_TAG = f"{COMPARISON_TAG}.select"
COMPARISON_FLOOR_TAG = f"{COMPARISON_TAG}.floor"
METHODS_TAG = "methods"
CELLS_TAG = "cells"
BEST_TAG = "best"
CELL_TAG = "cell"
LABEL_TAG = "label"
GRID_PREFIX = "grid."
STEPS_TO_TARGET_TAG = "steps_to_target"

OF_A_MODEL = (METHOD_TAG, MODEL_TAG, TASK_TAG, DATA_TAG, QUANTIZATION_TAG, SEED_TAG)
"""Tags of a run that its model has too."""

# Metrics of training steps.
LOSS = "train/loss"
LEARNING_RATE = "train/learning_rate"
GRADIENT_NORM = "train/gradient_norm"
EPOCH = "train/epoch"

# Numbers of a summary, besides those of splits, speed and memory.
STEPS = "steps"
BEST_STEP = "best_step"
TRAINABLE_PARAMETERS = "trainable_parameters"
ALL_PARAMETERS = "all_parameters"
WALL_SECONDS = "wall_seconds"
TRAIN_SECONDS = "train_seconds"
REAL_TOKENS = "real_tokens"
ADAPTER_BYTES = "adapter_bytes"
TOKENS_PER_SECOND = "speed/real_tokens_per_second"
PEAK_BYTES = "memory/peak_bytes"

# Metrics and params of the finished run, apart from the curves of the same name.
FINAL_PREFIX = "final/"

# MLflow's own, of the machine (tracking.system_metrics); their steps count samples.
SYSTEM_PREFIX = "system/"

# The few numbers that runs are compared by. MLflow's page for comparing runs shows a handful of metrics at a time, in
# alphabetical order: these come first.
COMPARE_PREFIX = "compare/"
COMPARE_TOKENS_PER_SECOND = f"{COMPARE_PREFIX}tokens_per_second"
COMPARE_PEAK_MEMORY_MB = f"{COMPARE_PREFIX}peak_memory_mb"
COMPARE_TRAINABLE_PARAMETERS = f"{COMPARE_PREFIX}trainable_parameters"
COMPARE_ADAPTER_KB = f"{COMPARE_PREFIX}adapter_kb"

# Limits of MLflow 3 (mlflow.utils.validation; a test compares). Kept here so that ranks and runs that
# never talk to MLflow need not import it.
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
MAX_NAME_LENGTH = 250
MAX_PARAMS_PER_BATCH = 100
MAX_METRICS_PER_BATCH = 1000

ELLIPSIS = "..."

T = TypeVar("T")

_REFUSED = re.compile(r"[^/\w.\- :]")


def of_split(split: str, metric: str = "") -> str:
    """A score of a split, `validation/f1`; without a metric, what all of its scores begin with."""
    return f"{split}/{metric}"


def speed(rate: str) -> str:
    """A rate of training steps, such as `samples_per_second`."""
    return f"speed/{rate}"


def memory(amount: str, rank: int | None = None) -> str:
    """Bytes: the most of any rank, or one rank's own."""
    return f"memory/{amount}" if rank is None else f"memory/rank{rank}/{amount}"


def compared_score(split: str, metric: str) -> str:
    """The score that runs are compared by."""
    return f"{COMPARE_PREFIX}{split}_{metric}"


def is_score_of_model(metric: str, step: int, saved: int) -> bool:
    """Whether a run's point at a step is a score of the weights that it saved after the step `saved`."""
    return metric.startswith(FINAL_PREFIX + of_split("test")) or (
        metric.startswith(of_split("validation")) and step == saved
    )


def model_name(run_name: str) -> str:
    """A run's name as MLflow lets a model be called."""
    return re.sub(r"[/:.%\"']", "-", run_name) or "model"


def sanitise_name(name: str) -> str:
    """A param, metric or tag name that MLflow accepts: refused characters and path steps become `_`."""
    parts = ("_" * len(part) if part in (".", "..") else part for part in _REFUSED.sub("_", name).split("/"))
    return "/".join(part for part in parts if part)[:MAX_NAME_LENGTH].rstrip("/") or "_"


def sanitise_names(values: Mapping[str, T]) -> dict[str, T]:
    """The mapping under accepted names; two names that become the same one get `_2`, `_3`, ..."""
    result: dict[str, T] = {}
    for name, value in values.items():
        accepted = sanitise_name(name)
        count = 1
        while accepted in result:
            count += 1
            suffix = f"_{count}"
            accepted = sanitise_name(name)[: MAX_NAME_LENGTH - len(suffix)] + suffix
        result[accepted] = value
    return result


def format_value(value: object) -> str:
    """A param's value as text: JSON for lists and mappings, `null`, `true`, `false`, else `str`."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters with an ellipsis at the end where it is longer."""
    return text if len(text) <= limit else text[: limit - len(ELLIPSIS)] + ELLIPSIS


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one mapping with dotted keys; lists and empty mappings stay values."""
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def as_params(values: Mapping[str, object]) -> dict[str, str]:
    """A nested recipe as MLflow params: dotted accepted names, text values within the limit."""
    texts = {name: shorten(format_value(value), MAX_PARAM_LENGTH) for name, value in flatten(values).items()}
    return sanitise_names(texts)


def as_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags under accepted names, values within the limit and without passwords."""
    return sanitise_names({name: shorten(hide_password(str(value)), MAX_TAG_LENGTH) for name, value in values.items()})
