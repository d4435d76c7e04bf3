"""Any number of labels for each text or pair: a decision on each label of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from sktune.backbone import Backbone
from sktune.data import Example, Row
from sktune.data.collate import Side
from sktune.data.labels import all_hidden, label_counts, named
from sktune.errors import UserError
from sktune.tasks.heads import Head, SequenceHead
from sktune.tasks.multi_label.config import MultiLabelConfig
from sktune.tasks.multi_label.metrics import label_metrics
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores
from sktune.tasks.texts import Reference, TextTask, pooling_of, probabilities_of

THRESHOLD = 0.5
"""A label is predicted from this probability on."""


class MultiLabelHead(SequenceHead):
    """A yes or no to each label from a row's pooled vector, trained by binary cross-entropy.

    Its labels are [B, labels] fp32, 1 or 0; each of them counts in the loss, but NaN.
    """

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = labels.expand_as(logits)  # a batch of fillers alone does not know how many labels there are
        each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        return each.masked_fill(labels.isnan(), 0.0).sum()

    @torch.no_grad()
    def set_prior(self, labels: torch.Tensor) -> None:
        self.classifier.bias.copy_(self.prior(labels[self.counted(labels).all(-1)]))

    def prior(self, labels: torch.Tensor) -> torch.Tensor:
        """The logits of the labels' frequencies among labels [N, labels].

        As many texts are counted more as there are answers, one with each label and one without, so that no label is
        certain from the start.
        """
        return ((labels.double().sum(0) + 1) / (len(labels) + 2)).logit()


class MultiLabel(TextTask):
    """A head on the pooled vector answers with a probability for each label, one independent of the others."""

    config: MultiLabelConfig

    def references(
        self, cells: Sequence[Any], class_names: tuple[str, ...] | None, where: str
    ) -> Sequence[Reference | None]:
        """The labels of each row, none twice; missing are null, and -1 throughout a split (hidden test labels)."""
        hidden = all_hidden(cells)
        return [
            None if cell is None or hidden else self._labels_of_cell(cell, class_names, f"{where}, row {row}")
            for row, cell in enumerate(cells)
        ]

    def _labels_of_cell(self, cell: Any, class_names: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
        if isinstance(cell, str):
            cell = [part.strip() for part in cell.split(self.config.label_separator)]
        elif not isinstance(cell, list):
            raise UserError(
                f"{where}: data.label_column must hold a list of labels, or a text with labels separated by "
                f"{self.config.label_separator!r} (task.label_separator), not {cell!r}."
            )
        names = [named(label, class_names, self.config.labels, where) for label in cell if label not in ("", None)]
        return tuple(dict.fromkeys(names))

    def target(self, reference: Reference, labels: dict[str, int]) -> list[float]:
        assert isinstance(reference, tuple)
        return [float(label in reference) for label in labels]

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """1 or 0 for each label, [B, labels] fp32; NaN for fillers."""
        count = next((len(row.labels) for row in rows if row is not None and isinstance(row.labels, list)), 1)
        absent = [torch.nan] * count
        return torch.tensor([absent if row is None else row.labels for row in rows], dtype=torch.float32)

    def sample(self, length: int, labels: int) -> Row:
        return Row(0, [0] * length, None, [0.0] * labels, [])

    def head(self, backbone: Backbone, labels: int) -> Head:
        return MultiLabelHead(backbone.hidden_size, labels, pooling_of(self.config, backbone), self.config.head_dropout)

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        assert output.logits is not None
        return probabilities_of(output.logits.detach().float().cpu().sigmoid(), rows, labels)

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        assert labels is not None
        rows = [row for row in rows if row.index in answers]
        references = [list(map(str, row.reference)) for row in rows]  # type: ignore[arg-type]
        chosen = [_likely(answers[row.index]) for row in rows]
        overall, per_label = label_metrics(references, chosen, labels)
        records = [
            {"row": row.index, "reference": truth, "prediction": found, "probabilities": answers[row.index]}
            for row, truth, found in zip(rows, references, chosen, strict=True)
        ]
        return Scores({**overall, "loss": loss}, records, per_type=per_label)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        """The most frequent labels, as many as have the best micro F1 on the training split."""
        assert labels is not None
        counts = label_counts(train)
        frequent = sorted(labels, key=lambda label: -counts[label])

        def micro_f1(size: int) -> float:
            found = sum(counts[label] for label in frequent[:size])
            return 2 * found / (size * len(train) + counts.total())

        best = frequent[: max(range(1, len(frequent) + 1), key=micro_f1)]

        def score(examples: Sequence[Example]) -> dict[str, float]:
            references = [list(map(str, example.reference)) for example in examples]  # type: ignore[arg-type]
            return label_metrics(references, [best] * len(examples), labels)[0]

        return f"always {', '.join(best)}", score

    def example(self, text: str, text_pair: str | None) -> Example:
        return Example(0, text, text_pair, reference=())

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        probabilities = answers[rows[0].index]
        return {"labels": _likely(probabilities), "probabilities": probabilities}

    def line(self, shown: Mapping[str, Any]) -> str:
        found = (f"{label} ({shown['probabilities'][label]:.3f})" for label in shown["labels"])
        return ", ".join(found) or "no label"


def _likely(probabilities: Mapping[str, float]) -> list[str]:
    return [label for label, probability in probabilities.items() if probability >= THRESHOLD]
