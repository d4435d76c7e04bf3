"""Tuning methods: one file each, registered here by the recipe's `method.name`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.base import Method
from sktune.methods.head_only import HeadOnly
from sktune.methods.sk_prefix import SKPrefix
from sktune.methods.sk_prompt import SKPrompt
from sktune.recipe.schema import MethodSection

METHODS: dict[str, Callable[..., Any]] = {"sk_prefix": SKPrefix, "sk_prompt": SKPrompt, "head_only": HeadOnly}


def build_method(section: MethodSection, backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> Method:
    """The method's module, for this backbone.

    Raises:
        ValueError: where the architecture or the text does not suit the method.
    """
    return METHODS[section.name](section, backbone, tokenizer)


__all__ = ["METHODS", "HeadOnly", "Method", "SKPrefix", "SKPrompt", "build_method"]
