"""The section of LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig


class LoraConfig(UpperLayersConfig):
    """Low-rank updates of linear layers (Hu et al., arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"

    known_as: ClassVar[Mapping[str, str]] = {"qlora": "with quantization.load_in_4bit: true"}
    inside_model: ClassVar[bool] = True
    rank: int = Field(8, ge=1, description="Of the updates.")
    alpha: int = Field(16, ge=1, description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On what the updates read.")
    target_modules: tuple[str, ...] | None = Field(
        None,
        description="Ends of linear layers' names, or [all-linear]; null: query and value of the family.",
    )

    @property
    def starts_as(self) -> StartsAs:
        return "model"
