"""Every name sktune writes to MLflow or to the local record, and the rules names and values follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeVar

# Artifacts, as MLflow shows them.
RECIPE_ARTIFACT = "recipe.yaml"
FIGURES_FOLDER = "figures"

# Tags.
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

# Of the runs of a comparison (sktune.comparison).
PARENT_RUN_TAG = "mlflow.parentRunId"
PARENT_LOCAL_ID_TAG = "sktune.parent_local_id"
COMPARISON_TAG = "sktune.comparison"
GRID_PREFIX = "grid."
STEPS_TO_TARGET_TAG = "steps_to_target"

# Metrics and params of the finished run, apart from the curves of the same name.
FINAL_PREFIX = "final/"

# The few numbers that runs are compared by. MLflow's page for comparing runs shows a handful of metrics at a time, in
# alphabetical order: these come first.
COMPARE_PREFIX = "compare/"

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
    """Tags under accepted names, values within the limit."""
    return sanitise_names({name: shorten(str(value), MAX_TAG_LENGTH) for name, value in values.items()})
