"""LLaMA-Adapter: prompts in the upper layers, let in through gates that start closed (arXiv 2303.16199)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, Woven, read_keys_and_values
from sktune.backbone.attention import GatedPrompt
from sktune.methods.llama_adapter.config import LlamaAdapterConfig
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText, ordinary_tokens

UNTOUCHED = 2
"""Lowest layers left alone unless the recipe says how many take part, as in the paper (30 of 32)."""


class LlamaAdapter(Method):
    """Every chosen layer projects its own prompt [P, d] to keys and values, and adds the attention to them, gated.

    The gates, one a head, are zero at the start: the model is the frozen one until they open.
    """

    def __init__(
        self, config: LlamaAdapterConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any
    ) -> None:
        super().__init__()
        depth = backbone.config.num_hidden_layers
        count = max(1, depth - UNTOUCHED) if config.layers is None else config.layers
        if count > depth:
            raise ValueError(f"method.layers: {count} is more than the model's {depth}; allowed: 1 to {depth}")
        if backbone.uses_cache_for_prefix:
            raise ValueError(_not_available(backbone))
        backbone.use_prefix_attention()
        self.first = depth - count
        self.prompts = nn.Parameter(torch.randn(count, config.num_virtual_tokens, backbone.hidden_size))
        self.gates = nn.Parameter(torch.zeros(count, backbone.config.num_attention_heads))
        self.text = PromptText(ordinary_tokens(tokenizer)[:1], backbone.hidden_size, trainable=False)

    def weave(self, backbone: Backbone) -> Woven:
        gated = []
        names = self._attention_modules(backbone)[self.first :]
        for name, prompt, gate in zip(names, self.prompts.to(backbone.dtype), self.gates, strict=True):
            module = backbone.model.get_submodule(name)
            key, value = module.get_submodule("k_proj")(prompt), module.get_submodule("v_proj")(prompt)
            gated.append((name, GatedPrompt(key, value, gate.tanh())))
        return Woven(gated=gated)

    def _attention_modules(self, backbone: Backbone) -> list[str]:
        # Which module attends in which layer is learned by reading; one token is enough.
        if self._read_once is None:
            with torch.inference_mode(False), torch.no_grad():
                read: PromptSemantics = read_keys_and_values(backbone, self.text(backbone))
            modules = [backbone.model.get_submodule(name) for name in read.modules]
            if not all(hasattr(module, "k_proj") and hasattr(module, "v_proj") for module in modules):
                raise ValueError(_not_available(backbone))
            self._read_once = read.modules
        names: list[str] = self._read_once
        return names


def _not_available(backbone: Backbone) -> str:
    return (
        f"method.name: llama_adapter is not available for {backbone.family}: it needs attention layers with separate "
        "key and value projections (LLaMA, Mistral, Qwen2, Phi, OPT); use prefix_tuning"
    )
