"""The section of SK-Prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.semantic.config import SemanticConfig
from sktune.methods.upper_layers import UpperLayersConfig
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig


class SKPrefixConfig(UpperLayersConfig, SemanticConfig):
    """SK-Prefix: refined keys and values of the text, visible to every layer of the second pass."""

    name: Literal["sk_prefix"] = "sk_prefix"

    known_as: ClassVar[Mapping[str, str]] = {"sk_tuning": ""}
    shared: bool = Field(False, description="One adapter for all layers instead of one per layer.")

    visible_prefix: ClassVar[bool] = True
    without_effect: ClassVar[dict[str, tuple[str, ...]]] = {
        **SemanticConfig.without_effect,
        "identity": (*SemanticConfig.without_effect["identity"], "shared"),
    }

    def frozen_blocks(self, depth: int) -> int:
        # The text that is read at every step is read through all blocks.
        return super().frozen_blocks(depth) if self.semantics == "cached" else 0

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(task, data)
        if self.layers is not None and self.trainable_text:
            yield Problem(
                "method.layers",
                "a text that is trained is trained through every block",
                "null with trainable_text: true",
                "leave one of the two out.",
            )
