"""Kept states in 8 bits a number: integers from -127 to 127, and the scale of each group of a token's numbers.

Not one scale a token: of some tokens, the first above all, decoders make states of which a few numbers are a thousand
times the others ("massive activations", arXiv 2402.17762). Beside those all others would become zero.
"""

from __future__ import annotations

import torch

GROUP = 64
"""Most numbers that share a scale; fewer where the width is no multiple of it."""
_LARGEST = 127
_SCALE = torch.float32


def kept_form(width: int, dtype: torch.dtype, packed: bool) -> tuple[int, torch.dtype]:
    """Width and dtype of what is kept of a token's states [width], packed or as they are."""
    if not packed:
        return width, dtype
    return width + width // _group(width) * _SCALE.itemsize, torch.uint8


def is_packed(kept: torch.Tensor) -> bool:
    """Whether these are codes and scales."""
    return kept.dtype == torch.uint8


def pack(states: torch.Tensor) -> torch.Tensor:
    """States [n, d] -> [n, d + 4 * groups] uint8, the codes and behind them the scales."""
    groups = states.float().unflatten(1, (-1, _group(states.shape[1])))
    scales = groups.abs().amax(2).clamp(min=torch.finfo(_SCALE).tiny) / _LARGEST
    codes = (groups / scales[..., None]).round().to(torch.int8)
    return torch.cat((codes.flatten(1).view(torch.uint8), scales.view(torch.uint8)), dim=1)


def unpack(kept: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """What `pack` made of states [n, width] -> those, each within half its scale before it is rounded to `dtype`."""
    codes = kept[:, :width].view(torch.int8)
    # A copy, as numbers of 4 bytes cannot be viewed from every address.
    scales = kept[:, width:].reshape(-1).clone().view(_SCALE).view(len(kept), -1)
    return (codes.unflatten(1, (-1, _group(width))) * scales[..., None]).flatten(1).to(dtype)


def _group(width: int) -> int:
    return next(size for size in range(GROUP, 0, -1) if width % size == 0)
