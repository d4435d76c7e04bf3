"""The section of tuning the uppermost blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.config import MethodConfig


class TopLayersConfig(MethodConfig):
    """The uppermost blocks are trained as they are, with the head."""

    name: Literal["top_layers"] = "top_layers"
    layers: int = Field(2, ge=1, description="How many blocks.")

    trains_backbone: ClassVar[bool] = True

    @property
    def depth_needed(self) -> int:
        return self.layers
