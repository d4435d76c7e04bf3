"""Semantic Knowledge Tuning of frozen, quantized, ZeRO-3-sharded language models (arXiv 2410.08598).

From Python: `sktune.attach(model, tokenizer, sktune.SKPrefixConfig(text="..."), task=..., num_labels=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sktune.api import attach, load_adapter, save_adapter
    from sktune.recipe.methods import BottleneckAdapterMethod as BottleneckAdapterConfig
    from sktune.recipe.methods import FullFineTuningMethod as FullFineTuningConfig
    from sktune.recipe.methods import HeadOnlyMethod as HeadOnlyConfig
    from sktune.recipe.methods import IA3Method as IA3Config
    from sktune.recipe.methods import LlamaAdapterMethod as LlamaAdapterConfig
    from sktune.recipe.methods import LoraMethod as LoraConfig
    from sktune.recipe.methods import PrefixTuningMethod as PrefixTuningConfig
    from sktune.recipe.methods import PromptTuningMethod as PromptTuningConfig
    from sktune.recipe.methods import PTuningMethod as PTuningConfig
    from sktune.recipe.methods import SKPrefixMethod as SKPrefixConfig
    from sktune.recipe.methods import SKPromptMethod as SKPromptConfig
    from sktune.recipe.methods import TopLayersMethod as TopLayersConfig

__all__ = [
    "BottleneckAdapterConfig",
    "FullFineTuningConfig",
    "HeadOnlyConfig",
    "IA3Config",
    "LlamaAdapterConfig",
    "LoraConfig",
    "PTuningConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "SKPrefixConfig",
    "SKPromptConfig",
    "TopLayersConfig",
    "attach",
    "load_adapter",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: checking a recipe must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'sktune' has no attribute {name!r}")
    if name.endswith("Config"):
        from sktune.recipe import methods

        return getattr(methods, name.removesuffix("Config") + "Method")
    from sktune import api

    return getattr(api, name)
