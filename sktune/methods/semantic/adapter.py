"""The small trainable network that refines what the frozen model understood of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sktune.methods.semantic.config import SemanticConfig

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

NOVELTY = 1e-2
"""The share of a position's square that must be new to count in full; well above the rounding of 16-bit semantics."""


class ReadSemantics(NamedTuple):
    """A text's semantics and what an adapter makes of them before any parameter is needed."""

    states: torch.Tensor
    """[count, P, width] in the dtype they were read in; what comes of them is fp32."""
    features: torch.Tensor | None
    """What a bottleneck starts from: told apart, and projected to [count, P, rank] where the projection is fixed."""

    def flatten(self, first: int, last: int) -> ReadSemantics:
        """The dimensions from `first` to `last` as one."""
        features = None if self.features is None else self.features.flatten(first, last)
        return ReadSemantics(self.states.flatten(first, last), features)


class SemanticAdapter(nn.Module):
    """z = F(s), with F the identity before the first update, so training starts from the hard prompt.

    - bottleneck: z = s + W_up act(W_down told_apart(s)) / sqrt(rank), W_up zero at the start, W_down the same for all
      and fixed unless `train_down`;
    - linear: z = W s, the paper's d x d map, W the identity at the start;
    - identity: z = s, nothing to train.

    Several adapters of one shape (one per layer, say) are one module with stacked weights: one batched product
    instead of many small ones.

    Args:
        config: kind, rank, train_down, activation, dropout, bias.
        count: number of independent adapters.
        width: features d of the semantics.
    """

    def __init__(self, config: SemanticConfig, count: int, width: int) -> None:
        super().__init__()
        self.kind = config.adapter
        self.dropout = config.dropout
        self.activation = config.activation
        self.down: nn.Parameter | None = None
        self.down_bias: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        self.up_bias: nn.Parameter | None = None
        self.fixed_down: torch.Tensor
        if config.adapter == "linear":
            self.up = nn.Parameter(torch.eye(width).repeat(count, 1, 1))
        elif config.adapter == "bottleneck":
            self.up = nn.Parameter(torch.zeros(count, config.rank, width))
            if config.train_down:
                # AdamW moves every weight by the rate. As large as this, and divided by `width` in all, W_down moves
                # its activations by about the rate too, whatever the model's width.
                self.down = nn.Parameter(torch.randn(count, width, config.rank) * width**0.5)
                if config.bias:
                    self.down_bias = nn.Parameter(torch.zeros(count, 1, config.rank))
            else:
                self.register_buffer("fixed_down", fixed_projection(width, config.rank), persistent=False)
        if config.adapter != "identity" and config.bias:
            self.up_bias = nn.Parameter(torch.zeros(count, 1, width))

    def read(self, semantics: torch.Tensor) -> ReadSemantics:
        """Prepares semantics [..., P, width] (any float dtype); once for all steps where they are constant."""
        if self.kind != "bottleneck":
            return ReadSemantics(semantics, None)
        features = tell_apart(semantics.float())
        return ReadSemantics(semantics, features if self.down is not None else features @ self.fixed_down)

    def forward(self, read: ReadSemantics) -> torch.Tensor:
        """The refined semantics [count, P, width] in fp32."""
        s, inner = read
        if self.up is None:
            return s.float()
        if inner is None:
            refined = s.float() @ self.up
        else:
            if self.down is not None:
                inner = inner @ (self.down / s.shape[-1] ** 0.5)
            if self.down_bias is not None:
                inner = inner + self.down_bias
            inner = F.dropout(ACTIVATIONS[self.activation](inner), self.dropout, self.training)
            # As in rank-stabilized LoRA (arXiv 2312.03732): one rate for all ranks.
            refined = s + inner @ self.up / self.up.shape[1] ** 0.5
        return refined if self.up_bias is None else refined + self.up_bias


def tell_apart(semantics: torch.Tensor) -> torch.Tensor:
    """What each position of a text says that the ones before it do not: their Gram-Schmidt directions.

    Positions resemble each other, so what is learned from them as they are moves all of them together: how much
    attention the text gets rather than what it says, and training breaks down at the rates it needs
    (docs/convergence.md).

    Args:
        semantics: [..., P, width], fp32.

    Returns:
        Of the same shape: orthogonal rows of norm 1, of a smaller norm where a position adds little to those before it.
    """
    directions = F.normalize(semantics, dim=-1)
    alike = directions @ directions.mT
    alike = alike + NOVELTY * torch.eye(alike.shape[-1], dtype=alike.dtype, device=alike.device)
    # `_ex`: semantics that are not finite give a loss that is not, and its message.
    factor = torch.linalg.cholesky_ex(alike).L
    return torch.linalg.solve_triangular(factor, directions, upper=False)


def fixed_projection(width: int, rank: int) -> torch.Tensor:
    """Standard normal numbers [width, rank] in fp32, the same on every machine; a higher rank adds columns.

    They are not saved with an adapter: numpy keeps this generator's stream (NEP 19), as torch does not.
    """
    return torch.tensor(np.random.RandomState(0).standard_normal((rank, width)).T, dtype=torch.float32)
