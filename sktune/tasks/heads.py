"""Heads: from what the model gives to logits and a loss sum, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -100
Ask = Mapping[str, Any]
"""What a head asks of `Backbone.read`: its keyword arguments. None of them: hidden states."""


class Scored(NamedTuple):
    """What a head makes of a batch."""

    logits: torch.Tensor
    loss_sum: torch.Tensor
    """fp32 scalar: the loss summed over what counts."""
    labelled: torch.Tensor
    """int64 scalar: the number of labels that count."""
    row_loss: torch.Tensor | None = None
    row_count: torch.Tensor | None = None
    """[B], of a language model: negative log-likelihood of each row's target, and its number of tokens."""


class Head(nn.Module):
    """What answers: a module with fp32 parameters, or with none.

    Labels that do not count are -100, of numbers NaN.
    """

    per_token = False
    """Whether labels and logits are one per token of the input: they are then moved as padding is."""

    def asks(self, labels: torch.Tensor | None, answer_positions: torch.Tensor | None) -> Ask:
        """What it has to be given, for these labels of right-padded rows."""
        return {}

    def forward(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, ask: Ask) -> Scored:
        """What was asked for, of right-padded rows with mask [B, L] -> logits, loss and counts."""
        raise NotImplementedError


class LanguageHead(Head):
    """Nothing to train: the language model's own logits predict each token from the one before it."""

    per_token = True

    def asks(self, labels: torch.Tensor | None, answer_positions: torch.Tensor | None) -> Ask:
        """Logits everywhere, or (with labels [B, L]) at each row's positions before its target tokens.

        They are [B, k], k of the row that has most; the others' last ones are positions without a target.
        """
        if labels is None:
            return {"with_lm_head": True}
        first, order = (_next(labels) != IGNORED).int().sort(dim=1, descending=True, stable=True)
        most = len(first.any(0).nonzero())  # a number that a plan, whose tensors have no contents, knows too
        return {"with_lm_head": True, "answer_positions": order[:, : max(most, 1)]}

    def forward(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, ask: Ask) -> Scored:
        """Logits [B, k, vocabulary] at the positions asked for, in the model's dtype."""
        if labels is None:
            return Scored(states, states.new_zeros(()), mask.new_zeros(()))
        targets = _next(labels).gather(1, ask["answer_positions"])
        token_loss = F.cross_entropy(
            states.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(targets)
        counted = targets != IGNORED
        return Scored(states, token_loss.sum(), counted.sum(), token_loss.sum(1), counted.sum(1))


def _next(labels: torch.Tensor) -> torch.Tensor:
    """Labels [B, L] of the tokens -> of the positions that predict them: those before."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


class LabelWordHead(Head):
    """Nothing to train: the language model's own logits of the labels' tokens are the logits of the labels."""

    tokens: torch.Tensor

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.tensor(list(tokens), dtype=torch.long), persistent=False)

    def asks(self, labels: torch.Tensor | None, answer_positions: torch.Tensor | None) -> Ask:
        """Logits at each row's answer."""
        assert answer_positions is not None, "rows without the position of their answer"
        return {"with_lm_head": True, "answer_positions": answer_positions}

    def forward(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, ask: Ask) -> Scored:
        """Logits [B, 1, vocabulary], labels [B] -> logits [B, labels] fp32."""
        logits = states[:, 0][:, self.tokens].float()
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


class TrainedHead(Head):
    """A linear layer on features of the model's hidden states, less their `centre`, a constant.

    A new run starts it as the best answer that does not look at the input (weights zero, `set_prior`), and shows it
    only what differs between inputs (`centre`): most of the mean square of a decoder's features is one vector common
    to all of them, and through it AdamW would move the bias of each class by many times the rate.
    """

    centre: torch.Tensor
    """[d] fp32; not trained. Zero until it is set, and where it has been folded into the bias."""
    class_weights: torch.Tensor | None
    """[outputs] fp32: what a label counts in the loss of training; None: all the same."""

    def __init__(self, hidden_size: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, outputs)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("centre", torch.zeros(hidden_size))
        self.register_buffer("class_weights", None, persistent=False)
        self.label_smoothing = 0.0

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden [B, L, d] of right-padded rows -> what is classified, [..., d] fp32."""
        raise NotImplementedError

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        """Which labels enter the loss: bool, shaped as they are."""
        return labels != IGNORED

    def answer(self, features: torch.Tensor) -> torch.Tensor:
        """What is classified, [..., d] -> logits [..., outputs]."""
        logits: torch.Tensor = self.classifier(self.dropout(features - self.centre))
        return logits

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss summed over the labels that count; in training with the weights and the smoothing of `weigh`."""
        options: dict[str, Any] = {"ignore_index": IGNORED, "reduction": "sum"}
        if self.training:
            options |= {"weight": self.class_weights, "label_smoothing": self.label_smoothing}
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **options)

    def weigh(self, class_weights: Sequence[float] | None, label_smoothing: float) -> None:
        """Changes the loss of training: what a label of each class counts, and how far its probability is from 1.

        The sum is still divided by the number of labels, not by that of their weights: batches cut differently add up
        to the same gradient.
        """
        self.class_weights = (
            None if class_weights is None else torch.tensor(class_weights, device=self.centre.device).float()
        )
        self.label_smoothing = label_smoothing

    def forward(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, ask: Ask) -> Scored:
        """Hidden states [B, L, d], a label for each of the features -> logits [..., outputs] fp32."""
        logits = self.answer(self.features(states, mask))
        if labels is None:
            return Scored(logits, logits.new_zeros(()), mask.new_zeros(()))
        return Scored(logits, self.loss(logits, labels), self.counted(labels).sum())

    @torch.no_grad()
    def set_prior(self, labels: torch.Tensor) -> None:
        """Sets the bias from the training labels, as they come in a batch; those that do not count are left out."""
        self.classifier.bias.copy_(self.prior(labels[self.counted(labels)]))

    def prior(self, labels: torch.Tensor) -> torch.Tensor:
        """The bias [outputs] that is the best answer without an input: the log of the frequencies of class ids [N].

        Every class is counted once more than it occurs, so that one that is absent stays possible. With class weights
        and smoothing it is the answer that their loss is least for.
        """
        counts = torch.bincount(labels.cpu(), minlength=self.classifier.out_features).double() + 1
        weights = torch.ones_like(counts) if self.class_weights is None else self.class_weights.cpu().double()
        smoothing = self.label_smoothing
        target = weights * ((1 - smoothing) * counts + smoothing * counts.sum() / len(counts))
        # A weight of zero leaves a class without a label: as rare as one among all.
        return (target.clamp(min=target.sum() / counts.sum()) / target.sum()).log()

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
        hidden, mask, labels, _ = inputs
        features, counted = head.features(hidden, mask), head.counted(labels)
        chosen = features[counted.any(-1) if counted.ndim == features.ndim else counted]
        total[:-1] += chosen.sum(0, dtype=torch.float64)
        total[-1] += len(chosen)

    hook = head.register_forward_pre_hook(add)
    try:
        yield total
    finally:
        hook.remove()


class TokenClassificationHead(TrainedHead):
    """Classifies each position; positions labelled -100 do not count."""

    per_token = True

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Every position's hidden state, [B, L, d]."""
        return hidden.float()


class SequenceHead(TrainedHead):
    """Classifies a row from its pooled vector."""

    def __init__(self, hidden_size: int, num_labels: int, pooling: str, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, num_labels, dropout)
        self.pooling = pooling

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Each row's pooled vector, [B, d]."""
        return pool(hidden, mask, self.pooling)
