"""What all frozen quantized linear layers share: a product that keeps nothing of the weight.

ZeRO-3 takes a gathered weight away by replacing `weight.data`. Whatever else still points at the gathered bytes (a
view, a cache, an attribute of an autograd context) keeps the whole layer alive; bitsandbytes' own layers do so until
the graph dies. Here the autograd function remembers the module alone, and backward reads the module's weight again,
which ZeRO-3 has gathered again by then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class FrozenLinear(nn.Linear):
    """y = x W^T + b with a packed, frozen W; gradients flow to x only.

    It is an `nn.Linear` to whoever wraps or counts linear layers, only its `weight` is packed.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        bias: whether there is a (frozen) bias.
        dtype: of the bias.
        transposed: the checkpoint stores W^T (transformers' `Conv1D`).
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, transposed: bool = False
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate W
        self.in_features = in_features
        self.out_features = out_features
        self.transposed = transposed
        empty = frozen(torch.empty(out_features, dtype=dtype, device="meta")) if bias else None
        self.register_parameter("bias", empty)

    @property
    def weight_elements(self) -> int:
        """Numbers W stands for."""
        return self.in_features * self.out_features

    @abstractmethod
    def rows_per_chunk(self, elements: int) -> int:
        """Rows of W, of about `elements` numbers, that can be packed without knowing the others."""

    @abstractmethod
    def pack(self, chunks: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Quantizes W from consecutive chunks of its rows, each [rows, in_features] in a float dtype.

        Returns:
            The tensors of this layer but the bias, by name.
        """

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """W [out_features, in_features]; a temporary of the caller's."""

    @abstractmethod
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features] in x's dtype, outside autograd."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] in any float dtype -> [..., out_features] in the same."""
        if x.numel() == 0:
            return x[..., :1].expand(*x.shape[:-1], self.out_features)  # empty too, and connected to x
        return _FrozenProduct.apply(x, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def gathered_weight(self) -> torch.Tensor:
        """The packed weight, which must be whole now: ZeRO-3 gathers it around forward and around backward."""
        weight = self.weight.data
        assert weight.numel(), "the weight is partitioned: call the module, on all ranks"
        return weight


def bitsandbytes_ops() -> Any:
    """Operators of bitsandbytes; importing it takes a second, which a plan, without weights, has no use for."""
    import bitsandbytes  # noqa: F401 - registers them

    return torch.ops.bitsandbytes


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter that never trains; any dtype."""
    return nn.Parameter(tensor, requires_grad=False)


class _FrozenProduct(torch.autograd.Function):
    """The product and its gradient to x; only the module is remembered between them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: FrozenLinear) -> torch.Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.linear.dequantized(gradient.dtype), None
