"""The section of sequence classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sktune.tasks.config import PooledConfig, WeighedConfig, class_metric_names


class SequenceClassificationConfig(WeighedConfig, PooledConfig):
    """One label for each text."""

    name: Literal["sequence_classification"] = "sequence_classification"

    known_as: ClassVar[Mapping[str, str]] = {
        "classification": "",
        "text_classification": "",
        "sentiment": "",
        "seq_cls": "",
    }

    one_label_per_text: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = "single_label_classification"
    hub_task: ClassVar[str | None] = "text-classification"
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        (
            {"text": "One of the best films I have seen in years."},
            {"label": "positive", "probabilities": {"negative": 0.04, "positive": 0.96}},
        ),
    )

    def metrics(self) -> tuple[str, ...]:
        return class_metric_names(self.labels)
