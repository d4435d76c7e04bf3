"""The section of regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sktune.tasks.config import PooledConfig


class RegressionConfig(PooledConfig):
    """A number for each text or pair."""

    name: Literal["regression"] = "regression"

    known_as: ClassVar[Mapping[str, str]] = {"sts": ""}

    reads_numbers: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = "regression"
    hub_task: ClassVar[str | None] = "text-classification"
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        ({"text": "The soup was cold and the waiter gone."}, {"value": 1.7}),
    )

    def metrics(self) -> tuple[str, ...]:
        return ("spearman", "pearson", "mse", "loss")
