"""Telling whether a module's parameters have changed, however they were changed."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from sktune.library_internals import have_values

CHUNK = 2**22
"""Elements that are summed at a time: 64 MiB of temporary memory."""


@torch.compiler.disable
def parameter_state(module: nn.Module) -> Hashable:
    """What differs whenever a parameter's values do.

    Neither `_version` nor the address tells: `parameter.data.copy_` changes neither. So the values are summed,
    each weighted by its place, in integers: nothing is rounded. Addresses are left out: they differ between ranks,
    which have to agree on whether they weave again (ZeRO-3 gathers).
    """
    parameters = list(module.parameters())
    if not have_values(parameters):
        return tuple((str(p.device), str(p.dtype)) for p in parameters)  # no values, so none that change
    sums = [_weighted_sum(parameter.detach()) for parameter in parameters]
    values = torch.stack([s.to(sums[0].device) for s in sums]).tolist() if sums else []
    return tuple((str(p.device), str(p.dtype), value) for p, value in zip(parameters, values, strict=True))


def _weighted_sum(values: torch.Tensor) -> torch.Tensor:
    bits = values.contiguous().flatten().view(torch.int32 if values.element_size() == 4 else torch.int16)
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK]
        places = torch.arange(start, start + len(part), device=bits.device)
        total = total + (part * (places * 0x9E3779B1 + 1)).sum()
    return total
