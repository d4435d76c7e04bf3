"""The section of IA3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig


class IA3Config(UpperLayersConfig):
    """Learned scales of keys, values and inner activations (Liu et al., arXiv 2205.05638)."""

    name: Literal["ia3"] = "ia3"

    inside_model: ClassVar[bool] = True
    target_modules: tuple[str, ...] | None = Field(
        None,
        description="Ends of layers' names, or [all-linear]; null: keys, values and feed-forward of the family.",
    )
    feedforward_modules: tuple[str, ...] | None = Field(
        None, description="Those of target_modules whose input is scaled instead of their output."
    )

    @property
    def starts_as(self) -> StartsAs:
        return "model"

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        if unknown := sorted(set(self.feedforward_modules or ()) - set(self.target_modules or ())):
            yield Problem(
                "method.feedforward_modules",
                f"names {', '.join(unknown)}, which method.target_modules does not",
                "some of method.target_modules",
                "name the layers in method.target_modules as well.",
            )
