"""The small trainable network that refines what the frozen model understood of the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from sktune.recipe.methods import SKMethod

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class SemanticAdapter(nn.Module):
    """z = F(s), with F the identity before the first update, so training starts from the hard prompt.

    - bottleneck: z = s + W_up act(W_down norm(s)), W_up zero at the start;
    - linear: z = W s, the paper's d x d map, W the identity at the start;
    - identity: z = s, nothing to train.

    Several adapters of one shape (one per layer, say) are one module with stacked weights: one batched product
    instead of many small ones.

    Args:
        method: kind, rank, activation, dropout, bias.
        count: number of independent adapters.
        width: features d of the semantics.
    """

    def __init__(self, method: SKMethod, count: int, width: int) -> None:
        super().__init__()
        self.dropout = method.dropout
        self.activation = method.activation
        self.down: nn.Parameter | None = None
        self.down_bias: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        self.up_bias: nn.Parameter | None = None
        if method.adapter == "linear":
            self.up = nn.Parameter(torch.eye(width).repeat(count, 1, 1))
        elif method.adapter == "bottleneck":
            # Rows of unit-variance input give unit-variance inner activations.
            self.down = nn.Parameter(torch.randn(count, width, method.rank) / width**0.5)
            self.up = nn.Parameter(torch.zeros(count, method.rank, width))
            if method.bias:
                self.down_bias = nn.Parameter(torch.zeros(count, 1, method.rank))
        if method.adapter != "identity" and method.bias:
            self.up_bias = nn.Parameter(torch.zeros(count, 1, width))

    def forward(self, semantics: torch.Tensor) -> torch.Tensor:
        """Refines semantics [count, P, width] (any float dtype) to [count, P, width] in fp32."""
        s = semantics.float()
        if self.up is None:
            return s
        if self.down is None:
            refined = s @ self.up
        else:
            inner = F.layer_norm(s, s.shape[-1:]) @ self.down
            if self.down_bias is not None:
                inner = inner + self.down_bias
            inner = F.dropout(ACTIVATIONS[self.activation](inner), self.dropout, self.training)
            refined = s + inner @ self.up
        return refined if self.up_bias is None else refined + self.up_bias
