"""The section of the baseline without a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sktune.methods.config import MethodConfig, StartsAs
from sktune.sections import TrainingSection


class HeadOnlyConfig(MethodConfig):
    """The baseline every method must beat: a head on the frozen model's features."""

    name: Literal["head_only"] = "head_only"

    known_as: ClassVar[Mapping[str, str]] = {"linear_probe": "", "linear_probing": ""}

    trains: ClassVar[bool] = False

    @property
    def starts_as(self) -> StartsAs:
        return "model"

    def frozen_blocks(self, depth: int) -> int:
        return depth

    @classmethod
    def unread(cls, training: TrainingSection) -> frozenset[str]:
        return frozenset() if training.head_learning_rate is None else frozenset({"training.learning_rate"})
