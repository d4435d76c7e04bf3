"""The section of sequence classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

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

    def metrics(self) -> tuple[str, ...]:
        return class_metric_names(self.labels)
