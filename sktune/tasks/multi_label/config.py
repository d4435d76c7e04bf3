"""The section of multi-label classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sktune.tasks.config import LabelledConfig, PooledConfig


class MultiLabelConfig(LabelledConfig, PooledConfig):
    """Any number of labels for each text or pair, none included."""

    name: Literal["multi_label"] = "multi_label"
    label_separator: str = Field(
        "|",
        min_length=1,
        description="What separates the labels of a text where data.label_column holds no list: `joy|surprise`.",
    )

    problem_type: ClassVar[str | None] = "multi_label_classification"
    hub_task: ClassVar[str | None] = "text-classification"
    assumed_labels: ClassVar[int] = 8
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        (
            {"text": "I never thought that we would win this!"},
            {"labels": ["joy", "surprise"], "probabilities": {"anger": 0.01, "joy": 0.93, "surprise": 0.88}},
        ),
    )

    def metrics(self) -> tuple[str, ...]:
        return ("micro_f1", "macro_f1", "exact_match", "loss")
