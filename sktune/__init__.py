"""Semantic Knowledge Tuning of frozen, quantized, ZeRO-3-sharded language models (arXiv 2410.08598).

From Python: `sktune.attach(model, tokenizer, sktune.SKPrefixConfig(text="..."), task=..., num_labels=...)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sktune.methods.bottleneck_adapter.config import BottleneckAdapterConfig
    from sktune.methods.full.config import FullFineTuningConfig
    from sktune.methods.head_only.config import HeadOnlyConfig
    from sktune.methods.ia3.config import IA3Config
    from sktune.methods.llama_adapter.config import LlamaAdapterConfig
    from sktune.methods.lora.config import LoraConfig
    from sktune.methods.p_tuning.config import PTuningConfig
    from sktune.methods.prefix_tuning.config import PrefixTuningConfig
    from sktune.methods.prompt_tuning.config import PromptTuningConfig
    from sktune.methods.sk_prefix.config import SKPrefixConfig
    from sktune.methods.sk_prompt.config import SKPromptConfig
    from sktune.methods.top_layers.config import TopLayersConfig
    from sktune.model.attach import attach, detach
    from sktune.model.load import load
    from sktune.model.saving import load_adapter, save_adapter

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
    "detach",
    "load",
    "load_adapter",
    "save_adapter",
]


_FUNCTIONS = {
    "attach": "attach",
    "detach": "attach",
    "load": "load",
    "load_adapter": "saving",
    "save_adapter": "saving",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: checking a recipe must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'sktune' has no attribute {name!r}")
    if name.endswith("Config"):
        from sktune.methods import METHODS

        return METHODS.config_called(name)
    return getattr(import_module(f"sktune.model.{_FUNCTIONS[name]}"), name)
