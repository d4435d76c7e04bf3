"""The section of the bottleneck adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.config import StartsAs
from sktune.methods.upper_layers import UpperLayersConfig


class BottleneckAdapterConfig(UpperLayersConfig):
    """Bottleneck networks behind the sublayers (Houlsby et al., arXiv 1902.00751; Pfeiffer et al., 2005.00247)."""

    name: Literal["bottleneck_adapter"] = "bottleneck_adapter"

    known_as: ClassVar[Mapping[str, str]] = {"adapter": "", "adapters": ""}
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer", description="houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only."
    )
    rank: int = Field(16, ge=1, description="Inner width.")
    activation: Literal["gelu", "relu", "silu", "tanh"] = Field("relu", description="Between the halves.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On the inner activations.")

    @property
    def starts_as(self) -> StartsAs:
        return "model"
