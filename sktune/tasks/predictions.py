"""From a batch's logits to answers in the words of the data, and from all answers of a split to its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sktune.data import Row
from sktune.tasks.config import TaskConfig
from sktune.tasks.metrics import class_metrics, entity_metrics, perplexity, regression_metrics

if TYPE_CHECKING:
    from sktune.model.tuned_model import TunedOutput

Answers = dict[int, Any]
"""Row number -> the model's answer: tags, {label: probability}, a number, or (negative log-likelihood, tokens)."""


@dataclass(frozen=True)
class Scores:
    """A split's scores.

    metrics: by name, the task's main metric and `loss` among them.
    records: one JSON-ready mapping per example: its number, reference and prediction.
    references, predictions: what a confusion matrix is made of (classification only).
    per_type: entity scores by type (token classification only).
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    references: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    per_type: dict[str, dict[str, float]] = field(default_factory=dict)


def answers_of(
    output: TunedOutput,
    rows: Sequence[Row | None],
    attention_mask: torch.Tensor,
    task: TaskConfig,
    labels: Sequence[str] | None,
) -> Answers:
    """The answers of one batch; fillers have none. A word without a piece of its own is answered "O"."""
    if task.name == "causal_lm":
        assert output.row_loss is not None and output.row_count is not None
        likelihoods = zip(output.row_loss.tolist(), output.row_count.tolist(), strict=True)
        return {row.index: pair for row, pair in zip(rows, likelihoods, strict=True) if row is not None}
    assert output.logits is not None
    logits = output.logits.detach().float().cpu()
    if task.name == "regression":
        return {row.index: float(value) for row, value in zip(rows, logits, strict=True) if row is not None}
    assert labels is not None
    if task.name == "token_classification":
        best = logits.argmax(-1)
        starts = attention_mask.cpu().argmax(1).tolist()  # padding may be on the left
        return {
            row.index: [labels[int(best[i, starts[i] + piece])] if piece >= 0 else "O" for piece in row.word_pieces]
            for i, row in enumerate(rows)
            if row is not None
        }
    probabilities = logits.softmax(-1)
    return {
        row.index: dict(zip(labels, probabilities[i].tolist(), strict=True))
        for i, row in enumerate(rows)
        if row is not None
    }


def score(
    rows: Sequence[Row],
    answers: Mapping[int, Any],
    loss: float,
    task: TaskConfig,
    labels: Sequence[str] | None,
) -> Scores:
    """Scores of the answered rows against their references.

    Args:
        rows: the split's rows; those without an answer are left out.
        answers: from all ranks.
        loss: mean loss over the labels that count.
        task: the recipe's task section.
        labels: the label set, where there is one.
    """
    rows = [row for row in rows if row.index in answers]
    if task.name == "token_classification":
        references = [list(map(str, row.reference)) for row in rows]  # type: ignore[arg-type]
        tags = [answers[row.index] for row in rows]
        overall, per_type = entity_metrics(references, tags)
        records = [
            {"row": row.index, "reference": reference, "prediction": predicted}
            for row, reference, predicted in zip(rows, references, tags, strict=True)
        ]
        return Scores({**overall, "loss": loss}, records, per_type=per_type)
    if task.name == "regression":
        truth = [float(row.reference) for row in rows]  # type: ignore[arg-type]
        numbers = [float(answers[row.index]) for row in rows]
        records = [
            {"row": row.index, "reference": reference, "prediction": predicted}
            for row, reference, predicted in zip(rows, truth, numbers, strict=True)
        ]
        return Scores({**regression_metrics(truth, numbers), "loss": loss}, records)
    if task.name == "causal_lm" and not task.has_label_set:
        records = [
            {"row": row.index, "reference": row.reference, "negative_log_likelihood": answers[row.index][0]}
            for row in rows
        ]
        return Scores({"perplexity": perplexity(loss), "loss": loss}, records)
    assert labels is not None
    if task.name == "causal_lm":
        rows, answers, loss = _choose_candidates(rows, answers, labels)
        if not rows:  # a trial of few batches may hold no example's candidates in full
            return Scores({"loss": loss}, [])
    names = [str(row.reference) for row in rows]
    chosen = [max(answers[row.index], key=answers[row.index].get) for row in rows]
    records = [
        {"row": row.group, "reference": name, "prediction": label, "probabilities": answers[row.index]}
        for row, name, label in zip(rows, names, chosen, strict=True)
    ]
    return Scores({**class_metrics(names, chosen, labels[-1]), "loss": loss}, records, names, chosen)


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
