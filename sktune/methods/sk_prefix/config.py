"""The section of SK-Prefix."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sktune.methods.semantic.config import SemanticConfig


class SKPrefixConfig(SemanticConfig):
    """SK-Prefix: refined keys and values of the text, visible to every layer of the second pass."""

    name: Literal["sk_prefix"] = "sk_prefix"
    shared: bool = Field(False, description="One adapter for all layers instead of one per layer.")

    visible_prefix: ClassVar[bool] = True
    without_effect: ClassVar[dict[str, tuple[str, ...]]] = {
        **SemanticConfig.without_effect,
        "identity": (*SemanticConfig.without_effect["identity"], "shared"),
    }
