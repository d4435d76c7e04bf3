"""The section of causal language modelling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.sections import DataSection, idle
from sktune.tasks.config import TEXT_COLUMNS, LabelledConfig, class_metric_names, words_tell_labels_apart


class CausalLMConfig(LabelledConfig):
    """The language model answers: in words of its own, or with the most likely of given words."""

    name: Literal["causal_lm"] = "causal_lm"

    known_as: ClassVar[Mapping[str, str]] = {"generation": "", "text_generation": "", "sft": "", "clm": ""}
    label_words: dict[str, str] | None = Field(
        None, description="Label -> words scored by likelihood; null means free text targets."
    )
    max_new_tokens: int = Field(32, ge=1, description="Length limit of the text that predict generates.")

    columns: ClassVar[frozenset[str]] = TEXT_COLUMNS | {"target_column"}
    has_head: ClassVar[bool] = False
    needs_language_model: ClassVar[bool] = True
    hub_task: ClassVar[str | None] = "text-generation"
    assumed_labels: ClassVar[int] = 1
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        ({"text": "What is the capital of France?"}, {"generated": "Paris"}),
        (
            {"text": "One of the best films I have seen in years."},
            {"label": "positive", "probabilities": {"negative": 0.04, "positive": 0.96}},
        ),
    )

    @property
    def has_label_set(self) -> bool:
        return self.label_words is not None

    @property
    def given_labels(self) -> tuple[str, ...] | None:
        return tuple(self.label_words) if self.labels is None and self.label_words is not None else self.labels

    @property
    def columns_to_name(self) -> dict[str, str]:
        return {"target_column": "target"} if self.label_words is None else {}

    @property
    def new_tokens(self) -> int:
        return self.max_new_tokens if self.label_words is None else 0

    def metrics(self) -> tuple[str, ...]:
        return ("perplexity", "loss") if self.label_words is None else class_metric_names(self.given_labels)

    def problems(self, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(data)
        if data is not None:
            yield from self._one_kind_of_target(data)
        if self.label_words is not None:
            yield from self._words_tell_labels_apart(self.label_words)
            why, cure = "nothing is generated", "leave out task.label_words, and name data.target_column."
            yield from idle("task", self, ("max_new_tokens",), why, cure)

    def _one_kind_of_target(self, data: DataSection) -> Iterator[Problem]:
        words, column = self.label_words is not None, data.target_column is not None
        if words == column:
            yield Problem(
                "task.label_words",
                f"{'both' if words else 'neither'} of task.label_words and data.target_column given",
                "with causal_lm: exactly one of the two",
                "label_words scores a fixed set of answers; data.target_column names a column of free text.",
            )
        if column and self.labels is not None:
            yield from idle("task", self, ("labels",), "the targets are free text", "give task.label_words instead.")

    def _words_tell_labels_apart(self, label_words: dict[str, str]) -> Iterator[Problem]:
        yield from words_tell_labels_apart("task.label_words", label_words, "words")
        if label_words and self.labels is not None and set(self.labels) != set(label_words):
            yield Problem(
                "task.labels",
                "names other labels than task.label_words",
                ", ".join(label_words),
                "leave task.labels out; the order of label_words is taken.",
            )
