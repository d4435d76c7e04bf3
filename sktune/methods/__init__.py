"""Tuning methods: one file each, registered here by the recipe's `method.name`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sktune.methods.base import Method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sktune.backbone import Backbone
    from sktune.recipe.methods import MethodSection

METHODS = {
    "sk_prefix": "sk_prefix:SKPrefix",
    "sk_prompt": "sk_prompt:SKPrompt",
    "head_only": "head_only:HeadOnly",
    "prompt_tuning": "prompt_tuning:PromptTuning",
    "prefix_tuning": "prefix_tuning:PrefixTuning",
    "p_tuning": "p_tuning:PTuning",
    "lora": "lora:Lora",
    "ia3": "lora:IA3",
    "llama_adapter": "llama_adapter:LlamaAdapter",
    "bottleneck_adapter": "bottleneck_adapter:BottleneckAdapter",
    "top_layers": "unfrozen:TopLayers",
    "full": "unfrozen:FullFineTuning",
    "prompt_based": "prompt_based:PromptBased",
    "in_context": "in_context:InContext",
}
"""Name -> module and class, imported when they are asked for: some need peft."""


def method_class(name: str) -> Any:
    """The class of a method."""
    module, _, kind = METHODS[name].partition(":")
    return getattr(import_module(f"sktune.methods.{module}"), kind)


def build_method(
    section: MethodSection, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] = ()
) -> Method:
    """The method's module, for this backbone; methods that train inside the backbone change it.

    Args:
        section: the recipe's method.
        backbone: frozen, loaded.
        tokenizer: the model's.
        labels: names of the task's labels, for methods that start from them.

    Raises:
        ValueError: where the architecture, the text or the labels do not suit the method.
    """
    return method_class(section.name)(section, backbone, tokenizer, labels)


__all__ = ["METHODS", "Method", "build_method", "method_class"]
