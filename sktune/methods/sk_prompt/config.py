"""The section of SK-Prompt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.semantic.config import SemanticConfig


class SKPromptConfig(SemanticConfig):
    """SK-Prompt: refined hidden states of the text in front of the input's embeddings."""

    name: Literal["sk_prompt"] = "sk_prompt"
    cut_layer: int = Field(
        0, ge=0, description="0: token embeddings; k: hidden states after k blocks, the rest not run."
    )

    @property
    def starts_as(self) -> StartsAs:
        return "noise" if self.cut_layer else "text"

    @property
    def depth_needed(self) -> int:
        return self.cut_layer
