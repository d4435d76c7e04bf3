"""Semantic Knowledge Tuning of frozen, quantized, ZeRO-3-sharded language models (arXiv 2410.08598).

From Python: `sktune.attach(model, tokenizer, sktune.SKPrefixConfig(text="..."), task=..., num_labels=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sktune.api import attach, load_adapter, save_adapter
    from sktune.recipe.methods import HeadOnlyMethod as HeadOnlyConfig
    from sktune.recipe.methods import SKPrefixMethod as SKPrefixConfig
    from sktune.recipe.methods import SKPromptMethod as SKPromptConfig

__all__ = ["HeadOnlyConfig", "SKPrefixConfig", "SKPromptConfig", "attach", "load_adapter", "save_adapter"]

_CONFIGS = {
    "HeadOnlyConfig": "HeadOnlyMethod",
    "SKPrefixConfig": "SKPrefixMethod",
    "SKPromptConfig": "SKPromptMethod",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: checking a recipe must not wait for torch.
    if name in _CONFIGS:
        from sktune.recipe import schema

        return getattr(schema, _CONFIGS[name])
    if name in __all__:
        from sktune import api

        return getattr(api, name)
    raise AttributeError(f"module 'sktune' has no attribute {name!r}")
