"""`${NAME}` and `${NAME:-default}` in a recipe's texts, for paths and secrets; `$${` is a plain `${`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sktune.errors import Problem
from sktune.sections import TrackingSection

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^{}]*)\}|\$\{")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?$", re.DOTALL)


MLFLOW_VARIABLES = {
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "system_metrics": "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
}
"""Fields of the section tracking -> MLflow's own variable for it."""


def mlflow_reference(key: str) -> str:
    """What stands for a field of the section tracking that the recipe leaves to MLflow's variable."""
    return f"${{{MLFLOW_VARIABLES[key]}:-{TrackingSection.model_fields[key].default}}}"


def with_mlflow_environment(mapping: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The recipe with references to those of MLflow's variables that are set, for the fields it says nothing of.

    References, so that a password in an address is not written down.
    """
    section = mapping.get("tracking") or {}
    if not isinstance(section, Mapping) or section.get("enabled") is False:
        return mapping
    silent = {key: mlflow_reference(key) for key, name in MLFLOW_VARIABLES.items() if environ.get(name)}
    added = {key: reference for key, reference in silent.items() if key not in section}
    return {**mapping, "tracking": {**section, **added}} if added else mapping


def substitute(value: Any, environ: Mapping[str, str], field: str = "") -> tuple[Any, list[Problem]]:
    """Replace references in every text of a nested value.

    Returns:
        The value with references replaced, and one problem for each reference that cannot be. An empty
        variable counts as unset where a default is given, as in a shell.
    """
    if isinstance(value, Mapping):
        items = [substitute(item, environ, f"{field}.{key}" if field else key) for key, item in value.items()]
        new = dict(zip(value, (item for item, _ in items), strict=True))
        return new, [problem for _, found in items for problem in found]
    if isinstance(value, (list, tuple)):
        items = [substitute(item, environ, f"{field}.{index}") for index, item in enumerate(value)]
        return [item for item, _ in items], [problem for _, found in items for problem in found]
    return _in_text(value, environ, field) if isinstance(value, str) else (value, [])


def _in_text(text: str, environ: Mapping[str, str], field: str) -> tuple[str, list[Problem]]:
    problems: list[Problem] = []

    def replacement(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${"
        inside = _INSIDE.match(match["inside"] or "")
        if inside is None:
            problems.append(
                Problem(
                    field,
                    f"{match.group()} is not a reference to an environment variable",
                    allowed="${NAME} or ${NAME:-default}",
                    cure="write $${ where a plain ${ is meant.",
                )
            )
            return match.group()
        name, default = inside["name"], inside["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            problems.append(
                Problem(
                    field,
                    f"the environment variable {name} is not set",
                    cure=f"run `export {name}=...` first, or give a default: ${{{name}:-default}}",
                )
            )
        return environ.get(name, match.group())

    return _REFERENCE.sub(replacement, text), problems


def escape(value: Any) -> Any:
    """The inverse of `substitute` for values without references: a plain `${` becomes `$${`."""
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
