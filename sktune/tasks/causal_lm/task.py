"""The language model answers itself: free text, or the most likely of given words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sktune.backbone import Backbone
from sktune.data import Coder, EncodedSplit, Example, Reading, Row
from sktune.data.cells import as_text
from sktune.data.collate import Side, padded
from sktune.data.examples import ABSENT
from sktune.data.labels import check_training_labels
from sktune.errors import UserError
from sktune.sections import DataSection
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.causal_lm.encode import encode_causal
from sktune.tasks.classes import class_answer, class_line, class_scores, most_frequent_label
from sktune.tasks.heads import Head, LanguageHead
from sktune.tasks.metrics import perplexity
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores
from sktune.tasks.texts import Reference, TextTask


class CausalLM(TextTask):
    """A row's answer is (negative log-likelihood of its target, number of the target's tokens)."""

    config: CausalLMConfig

    def answer_column(self, data: DataSection) -> tuple[str, str]:
        if self.config.label_words is not None:
            return super().answer_column(data)
        if data.target_column is None:
            raise UserError("data.target_column: causal_lm needs a column of target texts, or task.label_words.")
        return "data.target_column", data.target_column

    def references(
        self, cells: Sequence[Any], class_names: tuple[str, ...] | None, where: str
    ) -> Sequence[Reference | None]:
        if self.config.label_words is not None:
            return super().references(cells, class_names, where)
        return [as_text(cell, f"{where}, row {row}: data.target_column") for row, cell in enumerate(cells)]

    def label_set(self, train: Reading) -> tuple[str, ...] | None:
        words, labels = self.config.label_words, self.config.given_labels
        if words is None or labels is None:
            return None
        field = "task.label_words" if self.config.labels is None else "task.labels"
        check_training_labels(train.examples, labels, field, train.where)
        if without := [label for label in labels if label not in words]:
            raise UserError(f"task.label_words: no words for {', '.join(without)} of task.labels.")
        return labels

    def encode(
        self, examples: Sequence[Example], coder: Coder, labels: Labels, split: str, *, scoring: bool = False
    ) -> EncodedSplit:
        """For scoring, where there are label words, a row for every label of every example."""
        return encode_causal(examples, coder, self.config.label_words, labels if scoring else None, split)

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """A token id per token, [B, L] int64."""
        return padded([[] if row is None else row.labels for row in rows], ABSENT, width, side)  # type: ignore[misc]

    def sample(self, length: int, labels: int) -> Row:
        return Row(0, [0] * length, None, [0] * length, "")

    def head(self, backbone: Backbone, labels: int) -> Head:
        if backbone.is_encoder or not backbone.is_language_model:
            raise UserError(f"task.name: causal_lm needs a causal language model; {backbone.family} was loaded without")
        return LanguageHead()

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        assert output.row_loss is not None and output.row_count is not None
        likelihoods = zip(output.row_loss.tolist(), output.row_count.tolist(), strict=True)
        return {row.index: pair for row, pair in zip(rows, likelihoods, strict=True) if row is not None}

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        rows = [row for row in rows if row.index in answers]
        if labels is None:
            records = [
                {"row": row.index, "reference": row.reference, "negative_log_likelihood": answers[row.index][0]}
                for row in rows
            ]
            return Scores({"perplexity": perplexity(loss), "loss": loss}, records)
        rows, chosen, loss = _choose_candidates(rows, answers, labels)
        if not rows:  # a trial of few batches may hold no example's candidates in full
            return Scores({"loss": loss}, [])
        return class_scores(rows, chosen, loss, labels)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        return None if labels is None else most_frequent_label(train, labels)

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        assert labels is not None, "free text is generated"
        shares = torch.tensor([-answers[row.index][0] for row in rows]).softmax(0).tolist()
        return class_answer(dict(zip(labels, shares, strict=True)))

    def line(self, shown: Mapping[str, Any]) -> str:
        return str(shown["generated"]) if "generated" in shown else class_line(shown)


def _choose_candidates(
    rows: Sequence[Row], answers: Mapping[int, Any], labels: Sequence[str]
) -> tuple[list[Row], Answers, float]:
    """One row per example, its answer the candidates' normalised likelihoods; and the true candidates' mean loss."""
    groups: dict[int, dict[int, tuple[float, int]]] = {}
    first: dict[int, Row] = {}
    for row in rows:
        groups.setdefault(row.group, {})[row.candidate] = answers[row.index]
        first.setdefault(row.group, row)
    chosen: Answers = {}
    loss_sum, tokens = 0.0, 0
    complete = [row for group, row in first.items() if len(groups[group]) == len(labels)]
    for row in complete:
        candidates = groups[row.group]
        likelihood = torch.tensor([-candidates[i][0] for i in range(len(labels))]).softmax(0)
        chosen[row.index] = dict(zip(labels, likelihood.tolist(), strict=True))
        if row.reference in labels:
            nll, count = candidates[list(labels).index(str(row.reference))]
            loss_sum, tokens = loss_sum + nll, tokens + count
    return complete, chosen, loss_sum / max(tokens, 1)
