"""The section of tuning the uppermost blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig


class TopLayersConfig(UpperLayersConfig):
    """The uppermost blocks are trained as they are, with the head."""

    name: Literal["top_layers"] = "top_layers"
    layers: int | str = Field(2, description="How many blocks, or a share of them such as 1/2.")

    trains_backbone: ClassVar[bool] = True

    @property
    def starts_as(self) -> StartsAs:
        return "model"
