"""The section of regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sktune.tasks.config import PooledConfig


class RegressionConfig(PooledConfig):
    """A number for each text or pair."""

    name: Literal["regression"] = "regression"

    known_as: ClassVar[Mapping[str, str]] = {"sts": ""}

    reads_numbers: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = "regression"

    def metrics(self) -> tuple[str, ...]:
        return ("spearman", "pearson", "mse", "loss")
