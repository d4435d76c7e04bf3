"""8-bit linear layers: a row of int8 codes and one scale for each output feature (LLM.int8)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F

from sktune.backbone.quantized.frozen_linear import FrozenLinear, bitsandbytes_ops, frozen

LARGEST_CODE = 127


class FrozenLinear8bit(FrozenLinear):
    """W as int8 codes with a scale for each row.

    On a GPU the product is bitsandbytes' LLM.int8: x is quantized too, its outlier columns excepted. Elsewhere there
    is no fast integer product, so W is dequantized and x keeps its precision, in training as in evaluation. The
    gradient always comes from the dequantized W.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        bias: whether there is a bias.
        dtype: of the bias.
        threshold: columns of x with a number at least this large are multiplied in floating point; 0: none.
        transposed: the checkpoint stores W^T.
    """

    scale: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        threshold: float,
        transposed: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, transposed=transposed)
        self.threshold = threshold
        self.weight = frozen(torch.empty(out_features, in_features, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(out_features, device="meta"), persistent=False)

    def rows_per_chunk(self, elements: int) -> int:
        return max(1, elements // self.in_features)

    def pack(self, chunks: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = scale = None
        done = 0
        for chunk in chunks:
            codes, absmax, _ = bitsandbytes_ops().int8_vectorwise_quant.default(chunk.to(torch.float16))
            if weight is None or scale is None:
                weight = torch.empty(self.weight.shape, dtype=torch.int8, device=chunk.device)
                scale = torch.empty(self.scale.shape, device=chunk.device)
            weight[done:][: len(codes)] = codes
            scale[done:][: len(codes)] = absmax
            done += len(codes)
            del chunk, codes, absmax  # before the next one is read
        assert weight is not None and scale is not None and done == self.out_features
        return {"weight": weight, "scale": scale}

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return self.gathered_weight().to(dtype).mul_((self.scale * (1 / LARGEST_CODE))[:, None])

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            return self.llm_int8(x)
        return F.linear(x, self.dequantized(x.dtype), self.bias if self.bias is None else self.bias.to(x.dtype))

    def llm_int8(self, x: torch.Tensor) -> torch.Tensor:
        """The product in integers, but for the outlier columns of x (arXiv 2208.07339)."""
        ops = bitsandbytes_ops()
        rows = x.reshape(-1, self.in_features)
        # A copy: bitsandbytes sets outliers to zero in its argument for a moment.
        codes, row_scale, outliers = ops.int8_vectorwise_quant.default(
            rows.to(torch.float16, copy=True, memory_format=torch.contiguous_format), self.threshold
        )
        weight = self.gathered_weight()
        bias = self.bias if self.bias is None else self.bias.to(x.dtype)
        if self.threshold > 0:
            product, _ = ops.int8_mixed_scaled_mm.default(rows, codes, weight, row_scale, self.scale, outliers, bias)
        else:
            product = ops.int8_scaled_mm.default(codes, weight, row_scale, self.scale, bias=bias, dtype=x.dtype)
        return product.view(*x.shape[:-1], self.out_features)
