"""One label of a set for a text or a pair: answers, scores, and the most frequent label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sktune.backbone import Backbone
from sktune.data import Example, Row
from sktune.tasks.config import PooledConfig
from sktune.tasks.heads import Head, SequenceHead
from sktune.tasks.metrics import class_metrics
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores
from sktune.tasks.texts import TextTask, pooling_of, probabilities_of


class ClassTask(TextTask):
    """A head on the pooled vector answers with a probability for each label."""

    config: PooledConfig

    def head(self, backbone: Backbone, labels: int) -> Head:
        return SequenceHead(backbone.hidden_size, labels, pooling_of(self.config, backbone), self.config.head_dropout)

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        assert output.logits is not None
        return probabilities_of(output.logits.detach().float().cpu().softmax(-1), rows, labels)

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        assert labels is not None
        return class_scores([row for row in rows if row.index in answers], answers, loss, labels)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        assert labels is not None
        return most_frequent_label(train, labels)

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        return class_answer(answers[rows[0].index])

    def line(self, shown: Mapping[str, Any]) -> str:
        return class_line(shown)


def class_answer(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """What `predict` shows: the most probable label, and all probabilities."""
    return {"label": max(probabilities, key=lambda label: probabilities[label]), "probabilities": probabilities}


def class_line(shown: Mapping[str, Any]) -> str:
    """The most probable label and its probability."""
    return f"{shown['label']} ({shown['probabilities'][shown['label']]:.3f})"


def class_scores(rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Sequence[str]) -> Scores:
    """Scores of rows that all have an answer, {label: probability}: the most probable label is the prediction."""
    names = [str(row.reference) for row in rows]
    chosen = [max(answers[row.index], key=answers[row.index].get) for row in rows]
    records = [
        {"row": row.group, "reference": name, "prediction": label, "probabilities": answers[row.index]}
        for row, name, label in zip(rows, names, chosen, strict=True)
    ]
    return Scores({**class_metrics(names, chosen, labels), "loss": loss}, records, names, chosen)


def most_frequent_label(train: Sequence[Example], labels: Sequence[str]) -> Constant:
    """The training split's most frequent label as the answer to everything."""
    majority, _ = Counter(str(example.reference) for example in train).most_common(1)[0]
    return f"majority class ({majority})", lambda examples: class_metrics(
        [str(example.reference) for example in examples], [majority] * len(examples), labels
    )
