"""Bytes of the frozen backbone on one rank, by what they are, and the peak while they are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from sktune.backbone.quantized import FrozenLinear, FrozenLinear4bit, FrozenLinear8bit
from sktune.backbone.quantized.four_bit import GROUP
from sktune.backbone.streaming import CHUNK_ELEMENTS
from sktune.model.tuned_model import TunedModel

_QUANTIZING: dict[type[FrozenLinear], int] = {FrozenLinear4bit: 14, FrozenLinear8bit: 10}
"""Temporaries of each number of a chunk, in bytes, as measured on a CPU; a GPU's kernels need less."""


class FrozenBytes(NamedTuple):
    """Of one rank.

    packed, scales: of quantized weights; rest: of those that are not (embeddings, norms, head, skipped modules).
    buffers: rotary frequencies and the like, the method's and the head's too.
    host: of all parameters, where they are in the CPU's memory.
    load_peak: the most at any instant of loading, on the rank that reads.
    largest_dequantized: a whole weight in the arithmetic's dtype, which exists for the moment of its use.
    """

    packed: int
    scales: int
    rest: int
    buffers: int
    host: int
    load_peak: int
    largest_dequantized: int

    @property
    def total(self) -> int:
        """Bytes at rest."""
        return self.packed + self.scales + self.rest + self.buffers


def share(tensor: torch.Tensor, ranks: int) -> int:
    """Bytes of a rank's share of a parameter; ZeRO-3 pads it to the same number of elements on each rank."""
    return math.ceil(tensor.numel() / ranks) * tensor.element_size()


def whole_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the modules' own parameters and buffers, whole; not of their parts'."""
    return sum(
        tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    )


def frozen_bytes(model: TunedModel, ranks: int, dtype: torch.dtype, on_host: bool = False) -> FrozenBytes:
    """Bytes of a skeleton's parameters and buffers, in the order in which the loader fills it.

    Args:
        model: parameters on the meta device; what trains is left out.
        ranks: that share each parameter; 1: whole.
        dtype: of the arithmetic.
        on_host: parameters go to the CPU's memory, and do not count.
    """
    kinds = dict.fromkeys(("packed", "scales", "rest", "buffers", "host"), 0)
    loaded = peak = largest = 0
    seen: set[int] = set()
    for module in model.modules():
        waiting = 0  # packed tensors stay until they are placed, one by one
        if isinstance(module, FrozenLinear):
            largest = max(largest, module.weight_elements * dtype.itemsize)
            waiting = sum(t.nbytes for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
            peak = max(peak, loaded + waiting + _while_packing(module, dtype))
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or parameter.requires_grad:
                continue
            seen.add(id(parameter))
            own = share(parameter, ranks)
            peak = max(peak, loaded + (waiting or parameter.nbytes) + (own if ranks > 1 and not on_host else 0))
            waiting = max(waiting - parameter.nbytes, 0)
            quantized = isinstance(module, FrozenLinear) and name != "bias"
            kind = "rest" if not quantized else "packed" if name == "weight" else "scales"
            kinds["host" if on_host else kind] += own
            loaded += 0 if on_host else own
        buffers = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
        kinds["scales" if isinstance(module, FrozenLinear) else "buffers"] += buffers
        loaded += buffers
    return FrozenBytes(**kinds, load_peak=max(peak, loaded), largest_dequantized=largest)


def _while_packing(linear: FrozenLinear, dtype: torch.dtype) -> int:
    """A chunk with its temporaries; then, with double quantization, the scales before they are quantized."""
    rows = min(linear.rows_per_chunk(CHUNK_ELEMENTS), linear.out_features)
    chunk = rows * linear.in_features * (dtype.itemsize + _QUANTIZING[type(linear)])
    nested = getattr(linear, "double_quant", False)
    return max(chunk, 2 * math.ceil(linear.weight_elements / GROUP) * torch.float32.itemsize if nested else 0)
