"""4-bit linear layers: nf4 or fp4 in groups of 64, as bitsandbytes packs and multiplies them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch

from sktune.backbone.quantized.frozen_linear import FrozenLinear, bitsandbytes_ops, frozen

GROUP = 64
"""Numbers that share a scale."""
NESTED_GROUP = 256
"""Scales that share a scale, with double quantization."""


class FrozenLinear4bit(FrozenLinear):
    """W as 4-bit codes; the arithmetic is bitsandbytes' (its fused product where it has one for the device).

    The scales are a frozen parameter too, so that ZeRO-3 shards them with the codes: without double quantization
    they are an eighth of the codes' bytes, with it a thirty-second.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        bias: whether there is a bias.
        dtype: of the bias.
        quant_type: `nf4` or `fp4`.
        double_quant: quantize the scales as well, to 8 bits.
        compute_dtype: of the product; inputs are cast to it, outputs back.
        transposed: the checkpoint stores W^T.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        quant_type: str,
        double_quant: bool,
        compute_dtype: torch.dtype,
        transposed: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, transposed=transposed)
        self.quant_type = quant_type
        self.double_quant = double_quant
        self.compute_dtype = compute_dtype
        groups = math.ceil(self.weight_elements / GROUP)
        self.weight = frozen(torch.empty(math.ceil(self.weight_elements / 2), dtype=torch.uint8, device="meta"))
        scale_dtype = torch.uint8 if double_quant else torch.float32
        self.absmax = frozen(torch.empty(groups, dtype=scale_dtype, device="meta"))
        self.nested_absmax: torch.Tensor | None
        self.offset: torch.Tensor | None
        nested = torch.empty(math.ceil(groups / NESTED_GROUP), device="meta") if double_quant else None
        self.register_buffer("nested_absmax", nested, persistent=False)
        self.register_buffer("offset", torch.empty((), device="meta") if double_quant else None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.compute_dtype)).to(x.dtype)

    def rows_per_chunk(self, elements: int) -> int:
        whole_groups = GROUP // math.gcd(GROUP, self.in_features)
        return max(1, elements // (self.in_features * whole_groups)) * whole_groups

    def pack(self, chunks: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = absmax = None
        done = 0
        for chunk in chunks:
            codes, scales = bitsandbytes_ops().quantize_4bit.default(chunk, GROUP, self.quant_type, torch.uint8)
            if weight is None or absmax is None:
                weight = torch.empty(self.weight.shape, dtype=torch.uint8, device=chunk.device)
                absmax = torch.empty(self.absmax.shape, device=chunk.device)
            assert done % GROUP == 0, "only the last chunk may end inside a group"
            weight[done // 2 :][: codes.numel()] = codes.view(-1)
            absmax[done // GROUP :][: scales.numel()] = scales
            done += chunk.numel()
            del chunk, codes, scales  # before the next one is read
        assert weight is not None and absmax is not None and done == self.weight_elements
        if not self.double_quant:
            return {"weight": weight, "absmax": absmax}
        from bitsandbytes.functional import quantize_blockwise

        offset = absmax.mean()
        nested_codes, state = quantize_blockwise(absmax - offset, blocksize=NESTED_GROUP)
        return {"weight": weight, "absmax": nested_codes, "nested_absmax": state.absmax, "offset": offset}

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        absmax = self.absmax.data
        if self.double_quant:
            absmax = bitsandbytes_ops().dequantize_blockwise.default(
                absmax, self.nested_absmax, _scale_code(absmax.device), NESTED_GROUP, torch.float32
            )
            absmax = absmax + self.offset
        shape = (self.out_features, self.in_features)
        return bitsandbytes_ops().dequantize_4bit.default(
            self.gathered_weight(), absmax, GROUP, self.quant_type, shape, dtype
        )

    def product(self, x: torch.Tensor) -> torch.Tensor:
        nested: dict[str, torch.Tensor | None] = {}
        scales: torch.Tensor | None = self.absmax.data
        if self.double_quant:
            code = _scale_code(x.device)
            nested = {"absmax_8bit": scales, "absmax_code": code, "absmax_offset": self.offset}
            scales = self.nested_absmax
        product: torch.Tensor = bitsandbytes_ops().gemm_4bit.default(
            x,
            self.gathered_weight().view(-1, 1),
            (self.out_features, self.in_features),
            scales,
            GROUP,
            self.quant_type,
            bias=None if self.bias is None else self.bias.to(x.dtype),
            **nested,
        )
        return product


@lru_cache
def _scale_code(device: torch.device) -> torch.Tensor:
    """What each 8-bit scale stands for: [256] fp32, the same for all layers."""
    from bitsandbytes.functional import create_dynamic_map

    with torch.inference_mode(False):
        return create_dynamic_map().to(device)
