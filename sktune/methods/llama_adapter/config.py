"""The section of LLaMA-Adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig


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
