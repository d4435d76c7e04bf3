"""The section of LLaMA-Adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sktune.methods.config import MethodConfig


class LlamaAdapterConfig(MethodConfig):
    """Prompts in the upper layers behind gates that start at zero (Zhang et al., arXiv 2303.16199)."""

    name: Literal["llama_adapter"] = "llama_adapter"
    num_virtual_tokens: int = Field(10, ge=1, description="Of each layer's prompt.")
    layers: int | None = Field(None, ge=1, description="How many of the top layers; null: all but the lowest two.")

    @property
    def depth_needed(self) -> int:
        return self.layers or 0
