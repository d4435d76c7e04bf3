"""A task with one label for each text, whose label the language model gives as a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sktune.backbone import Backbone
from sktune.data import Coder, EncodedSplit, Example, Reading, Row
from sktune.data.table import Table
from sktune.methods.template.encode import TemplateEncoder
from sktune.sections import DataSection
from sktune.tasks.heads import Head, LabelWordHead
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores, Task


class TemplateTask(Task):
    """Another task read through a template; what is answered, and how that is scored and shown, is the other's.

    Args:
        task: which is asked.
        encoder: fills the template.
    """

    answers_at_positions = True

    def __init__(self, task: Task, encoder: TemplateEncoder) -> None:
        super().__init__(task.config)
        self.task = task
        self.encoder = encoder
        self.report = encoder.report

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        return self.task.read(table, data, split)

    def label_set(self, train: Reading) -> tuple[str, ...] | None:
        return self.task.label_set(train)

    def encode(
        self, examples: Sequence[Example], coder: Coder, labels: Labels, split: str, *, scoring: bool = False
    ) -> EncodedSplit:
        return self.encoder.encode(examples, split, coder.max_positions)

    def head(self, backbone: Backbone, labels: int) -> Head:
        assert backbone.is_language_model, "loaded without the language model's head"
        return LabelWordHead(self.encoder.template.tokens)

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        return self.task.answers(output, rows, starts, labels)

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        return self.task.score(rows, answers, loss, labels)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        return self.task.constant(train, labels)

    def example(self, text: str, text_pair: str | None) -> Example:
        return self.task.example(text, text_pair)

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        return self.task.shown(example, rows, answers, labels)

    def line(self, shown: Mapping[str, Any]) -> str:
        return self.task.line(shown)
