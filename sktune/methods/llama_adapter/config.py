"""The section of LLaMA-Adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig, number_of

UNTOUCHED = 2
"""Lowest layers left alone unless the recipe says how many take part, as in the paper (30 of 32)."""


class LlamaAdapterConfig(UpperLayersConfig):
    """Prompts in the upper layers behind gates that start at zero (Zhang et al., arXiv 2303.16199)."""

    name: Literal["llama_adapter"] = "llama_adapter"
    num_virtual_tokens: int = Field(10, ge=1, description="Of each layer's prompt.")
    layers: int | str | None = Field(
        None,
        description="How many of the upper blocks take part, or a share such as 1/2; null: all but the lowest two.",
    )

    @property
    def starts_as(self) -> StartsAs:
        return "model"

    def taking_part(self, depth: int) -> int:
        """How many of a model's `depth` blocks take part."""
        return max(1, depth - UNTOUCHED) if self.layers is None else number_of(self.layers, depth)

    def frozen_blocks(self, depth: int) -> int:
        return depth - self.taking_part(depth)
