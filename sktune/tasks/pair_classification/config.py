"""The section of pair classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from sktune.errors import Problem
from sktune.sections import DataSection
from sktune.tasks.config import PooledConfig, WeighedConfig, class_metric_names


class PairClassificationConfig(WeighedConfig, PooledConfig):
    """One label for two texts."""

    name: Literal["pair_classification"] = "pair_classification"

    known_as: ClassVar[Mapping[str, str]] = {"nli": "", "text_pair_classification": ""}

    one_label_per_text: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = "single_label_classification"
    hub_task: ClassVar[str | None] = "text-classification"
    assumed_labels: ClassVar[int] = 3  # NLI's
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        (
            {"text": "A man is playing the guitar.", "text_pair": "Somebody makes music."},
            {"label": "entailment", "probabilities": {"contradiction": 0.02, "entailment": 0.91, "neutral": 0.07}},
        ),
    )

    @property
    def columns_to_name(self) -> dict[str, str]:
        return {"text_pair_column": "text_pair"}

    def metrics(self) -> tuple[str, ...]:
        return class_metric_names(self.labels)

    def problems(self, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(data)
        if data is not None and data.text_pair_column is None:
            yield Problem(
                "data.text_pair_column",
                "pair_classification needs the column of the second text",
                "the name of a column",
                "for example `text_pair_column: hypothesis` with `text_column: premise`.",
            )
