"""Padding on either side, computed as if it were on the right.

A text in front of the input must touch the input's first real token: with padding between them positions,
sliding windows and last-token features would all be off.
"""

from __future__ import annotations

import torch


class RightAligned:
    """Moves each row's real tokens to its front, and results back to where the tokens were.

    Args:
        attention_mask: [B, L], 1 for real tokens, padding on either side.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        self.order = torch.argsort(attention_mask == 0, dim=1, stable=True)
        self.back = torch.argsort(self.order, dim=1)
        self.attention_mask = attention_mask.gather(1, self.order)

    def forth(self, tensor: torch.Tensor) -> torch.Tensor:
        """[B, L] or [B, L, features] in the caller's order -> the same with padding on the right."""
        return tensor.gather(1, self.order if tensor.ndim == 2 else self.order[..., None].expand_as(tensor))

    def restore(self, tensor: torch.Tensor) -> torch.Tensor:
        """[B, L, features] with padding on the right -> the caller's order."""
        return tensor.gather(1, self.back[..., None].expand_as(tensor))
