"""The section of prompt-based fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.template.config import TemplateConfig


class PromptBasedConfig(TemplateConfig):
    """Fine-tuning on a template that the language model completes (PET, arXiv 2001.07676; LM-BFF, 2012.15723)."""

    name: Literal["prompt_based"] = "prompt_based"

    known_as: ClassVar[Mapping[str, str]] = {"pet": ""}
    layers: int | None = Field(
        None, ge=1, description="Train the uppermost blocks alone; null: the whole model with its head."
    )

    trains_backbone: ClassVar[bool] = True

    @property
    def depth_needed(self) -> int:
        return self.layers or 0
