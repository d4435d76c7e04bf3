"""A number for each text or pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sktune.backbone import Backbone
from sktune.data import Example, Row
from sktune.data.collate import Side
from sktune.data.labels import numbers
from sktune.tasks.config import PooledConfig
from sktune.tasks.heads import Head, SequenceHead
from sktune.tasks.metrics import regression_metrics
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores
from sktune.tasks.texts import Reference, TextTask, pooling_of


class RegressionHead(SequenceHead):
    """A number from a row's pooled vector, trained by the squared error."""

    def __init__(self, hidden_size: int, pooling: str, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, 1, pooling, dropout)

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def answer(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, d] -> numbers [B]."""
        return super().answer(features).squeeze(-1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        difference = (logits - labels.float()).masked_fill(labels.isnan(), 0.0)
        return (difference**2).sum()

    def prior(self, labels: torch.Tensor) -> torch.Tensor:
        """The mean of the labels [N], as a bias [1]."""
        return labels.double().mean()[None]


class Regression(TextTask):
    """A head on the pooled vector answers with a number."""

    config: PooledConfig

    def references(
        self, cells: Sequence[Any], class_names: tuple[str, ...] | None, where: str
    ) -> Sequence[Reference | None]:
        return numbers(cells, where)

    def target(self, reference: Reference, labels: dict[str, int]) -> float:
        assert not isinstance(reference, tuple)
        return float(reference)

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """Numbers [B] fp32, NaN for fillers."""
        return torch.tensor([torch.nan if row is None else row.labels for row in rows], dtype=torch.float32)

    def sample(self, length: int, labels: int) -> Row:
        return Row(0, [0] * length, None, 0.0, 0.0)

    def head(self, backbone: Backbone, labels: int) -> Head:
        return RegressionHead(backbone.hidden_size, pooling_of(self.config, backbone), self.config.head_dropout)

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        assert output.logits is not None
        values = output.logits.detach().float().cpu()
        return {row.index: float(value) for row, value in zip(rows, values, strict=True) if row is not None}

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        rows = [row for row in rows if row.index in answers]
        truth = [float(row.reference) for row in rows]  # type: ignore[arg-type]
        found = [float(answers[row.index]) for row in rows]
        records = [
            {"row": row.index, "reference": reference, "prediction": predicted}
            for row, reference, predicted in zip(rows, truth, found, strict=True)
        ]
        return Scores({**regression_metrics(truth, found), "loss": loss}, records)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        truth = _numbers(train)
        mean = sum(truth) / len(truth)
        return f"mean ({mean:.3g})", lambda examples: regression_metrics(_numbers(examples), [mean] * len(examples))

    def example(self, text: str, text_pair: str | None) -> Example:
        return Example(0, text, text_pair, reference=0.0)

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        return {"value": answers[rows[0].index]}

    def line(self, shown: Mapping[str, Any]) -> str:
        return str(shown["value"])


def _numbers(examples: Sequence[Example]) -> list[float]:
    return [float(example.reference) for example in examples]  # type: ignore[arg-type]
