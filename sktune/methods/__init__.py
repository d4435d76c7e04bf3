"""Tuning methods: one file each, registered here by the recipe's `method.name`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.base import Method
from sktune.methods.bottleneck_adapter import BottleneckAdapter
from sktune.methods.head_only import HeadOnly
from sktune.methods.in_context import InContext
from sktune.methods.llama_adapter import LlamaAdapter
from sktune.methods.lora import IA3, Lora
from sktune.methods.p_tuning import PTuning
from sktune.methods.prefix_tuning import PrefixTuning
from sktune.methods.prompt_based import PromptBased
from sktune.methods.prompt_tuning import PromptTuning
from sktune.methods.sk_prefix import SKPrefix
from sktune.methods.sk_prompt import SKPrompt
from sktune.methods.unfrozen import FullFineTuning, TopLayers
from sktune.recipe.methods import MethodSection

METHODS: dict[str, Callable[..., Any]] = {
    "sk_prefix": SKPrefix,
    "sk_prompt": SKPrompt,
    "head_only": HeadOnly,
    "prompt_tuning": PromptTuning,
    "prefix_tuning": PrefixTuning,
    "p_tuning": PTuning,
    "lora": Lora,
    "ia3": IA3,
    "llama_adapter": LlamaAdapter,
    "bottleneck_adapter": BottleneckAdapter,
    "top_layers": TopLayers,
    "full": FullFineTuning,
    "prompt_based": PromptBased,
    "in_context": InContext,
}


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
    return METHODS[section.name](section, backbone, tokenizer, labels)


__all__ = ["METHODS", "HeadOnly", "Method", "SKPrefix", "SKPrompt", "build_method"]
