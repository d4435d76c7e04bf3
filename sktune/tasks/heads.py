"""Heads: from hidden states to logits and a loss sum, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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


class TrainedHead(nn.Module):
    """A linear layer on features of the model's hidden states, less their `centre`, a constant.

    A new run starts it as the best answer that does not look at the input (weights zero, `set_prior`), and shows it
    only what differs between inputs (`centre`): most of the mean square of a decoder's features is one vector common
    to all of them, and through it AdamW would move the bias of each class by many times the rate.
    """

    regression = False
    centre: torch.Tensor
    """[d] fp32; not trained. Zero until it is set, and where it has been folded into the bias."""

    def __init__(self, hidden_size: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, outputs)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("centre", torch.zeros(hidden_size))

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden [B, L, d] of right-padded rows -> what is classified, [..., d] fp32."""
        raise NotImplementedError

    def counted(self, labels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Which labels enter the loss: bool, shaped as they are."""
        if not self.regression:
            return labels != IGNORED
        return torch.ones_like(labels, dtype=torch.bool) if valid is None else valid

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, valid: torch.Tensor | None
    ) -> Scored:
        """Hidden [B, L, d], a label for each of the features -> logits [..., outputs] fp32 (regression: [...])."""
        logits = self.classifier(self.dropout(self.features(hidden, mask) - self.centre))
        if self.regression:
            logits = logits.squeeze(-1)
        if labels is None:
            return Scored(logits, logits.new_zeros(()), mask.new_zeros(()))
        counted = self.counted(labels, valid)
        if self.regression:
            loss = ((logits - labels.float()) ** 2 * counted).sum()
        else:
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return Scored(logits, loss, counted.sum())

    @torch.no_grad()
    def set_prior(self, labels: torch.Tensor) -> None:
        """Sets the bias from the training labels that count, [N]: the log of their frequencies, or their mean.

        Every class is counted once more than it occurs, so that one that is absent stays possible.
        """
        if self.regression:
            self.classifier.bias.fill_(labels.double().mean())
        else:
            counts = torch.bincount(labels.cpu(), minlength=self.classifier.out_features).double() + 1
            self.classifier.bias.copy_((counts / counts.sum()).log())

    @torch.no_grad()
    def set_centre(self, feature_sum: torch.Tensor) -> None:
        """Sets the centre from what `summed_features` has summed, over all ranks; nothing where no label counted."""
        if feature_sum[-1] > 0:
            self.centre.copy_(feature_sum[:-1] / feature_sum[-1])


@contextmanager
def summed_features(head: TrainedHead) -> Iterator[torch.Tensor]:
    """[d + 1] on the head's device: the sum of the features whose labels count, and their number.

    It grows by every forward pass inside, whoever runs it. In float64: it does not depend on how a batch is cut.
    """
    total = torch.zeros(len(head.centre) + 1, dtype=torch.float64, device=head.centre.device)

    @torch.no_grad()
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden, mask, labels, valid = inputs
        chosen = head.features(hidden, mask)[head.counted(labels, valid)]
        total[:-1] += chosen.sum(0, dtype=torch.float64)
        total[-1] += len(chosen)

    hook = head.register_forward_pre_hook(add)
    try:
        yield total
    finally:
        hook.remove()


class TokenClassificationHead(TrainedHead):
    """Classifies each position; positions labelled -100 do not count."""

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Every position's hidden state, [B, L, d]."""
        return hidden.float()


class SequenceHead(TrainedHead):
    """Classifies a row, or (`num_labels` 1 with `regression`) gives it a number, from its pooled vector."""

    def __init__(
        self, hidden_size: int, num_labels: int, pooling: str, dropout: float = 0.0, regression: bool = False
    ) -> None:
        super().__init__(hidden_size, num_labels, dropout)
        self.pooling = pooling
        self.regression = regression

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Each row's pooled vector, [B, d]."""
        return pool(hidden, mask, self.pooling)
