"""The section of prompt tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.config import FromTextConfig
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig


class PromptTuningConfig(FromTextConfig):
    """Embeddings of their own in front of the input (Lester et al., arXiv 2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"

    known_as: ClassVar[Mapping[str, str]] = {"soft_prompt": ""}
    init: Literal["random", "vocabulary", "text", "labels"] = Field(
        "vocabulary", description="Start from normal noise, tokens drawn at random, `text`, or the labels' names."
    )
    text: str | None = Field(None, min_length=1, description="With init: text; cut or repeated to the length.")

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(task, data)
        if self.init == "labels" and task is not None and not task.has_label_set:
            yield Problem(
                "method.init",
                f"cannot be labels: {task.name} with this data has none",
                "random, vocabulary, text",
                "choose one of those.",
            )
