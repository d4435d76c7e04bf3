"""Heads: from hidden states to logits and a loss sum, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -100


class Scored(NamedTuple):
    """What a head makes of a batch; `labelled` is the int64 number of labels that count."""

    logits: torch.Tensor
    loss_sum: torch.Tensor
    """fp32 scalar: the loss summed over what counts."""
    labelled: torch.Tensor


class LabelWordHead(nn.Module):
    """Nothing to train: the language model's own logits of the labels' tokens are the logits of the labels."""

    tokens: torch.Tensor

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.tensor(list(tokens), dtype=torch.long), persistent=False)

    def forward(self, vocabulary: torch.Tensor, labels: torch.Tensor | None) -> Scored:
        """Logits [B, vocabulary] at each row's answer, labels [B] -> logits [B, labels] fp32."""
        logits = vocabulary[:, self.tokens].float()
        if labels is None:
            return Scored(logits, logits.new_zeros(()), self.tokens.new_zeros(()))
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return Scored(logits, loss, (labels != IGNORED).sum())


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """One fp32 vector [B, d] per row of right-padded hidden states [B, L, d]: its last, first or mean real token."""
    if how == "first":
        return hidden[:, 0].float()
    if how == "last":
        last = mask.sum(1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    assert how == "mean"
    weights = mask[..., None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


class TokenClassificationHead(nn.Module):
    """Classifies each position; positions labelled -100 do not count."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor | None,
        valid: torch.Tensor | None,
    ) -> Scored:
        """Hidden [B, L, d], labels [B, L] -> logits [B, L, labels] fp32."""
        logits = self.classifier(self.dropout(hidden.float()))
        if labels is None:
            return Scored(logits, logits.new_zeros(()), mask.new_zeros(()))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return Scored(logits, loss, (labels != IGNORED).sum())


class SequenceHead(nn.Module):
    """Classifies a row, or (`num_labels` 1 with `regression`) gives it a number, from its pooled vector."""

    def __init__(
        self, hidden_size: int, num_labels: int, pooling: str, dropout: float = 0.0, regression: bool = False
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.regression = regression
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor | None,
        valid: torch.Tensor | None,
    ) -> Scored:
        """Hidden [B, L, d], labels [B] -> logits [B, labels] fp32 (regression: [B])."""
        logits = self.classifier(self.dropout(pool(hidden, mask, self.pooling)))
        if self.regression:
            logits = logits.squeeze(-1)
        if labels is None:
            return Scored(logits, logits.new_zeros(()), mask.new_zeros(()))
        if self.regression:
            counts = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
            loss = ((logits - labels.float()) ** 2 * counts).sum()
            return Scored(logits, loss, counts.sum())
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return Scored(logits, loss, (labels != IGNORED).sum())
