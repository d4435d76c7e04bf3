"""LLaMA-Adapter: prompts in the upper layers, let in through gates that start closed (arXiv 2303.16199)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, Woven, read_keys_and_values
from sktune.backbone.attention import GatedPrompt
from sktune.errors import UserError
from sktune.methods.llama_adapter.config import LlamaAdapterConfig
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText, ordinary_tokens


class LlamaAdapter(Method):
    """Every chosen layer projects its own prompt [P, d] to keys and values, and adds the attention to them, gated.

    The gates, one a head, are zero at the start: the model is the frozen one until they open.
    """

    def __init__(
        self, config: LlamaAdapterConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any
    ) -> None:
        super().__init__()
        count = config.taking_part(backbone.config.num_hidden_layers)
        if backbone.uses_cache_for_prefix:
            raise UserError(_not_available(backbone))
        backbone.use_prefix_attention("llama_adapter")
        self.prompts = nn.Parameter(torch.randn(count, config.num_virtual_tokens, backbone.hidden_size))
        self.gates = nn.Parameter(torch.zeros(count, backbone.config.num_attention_heads))
        self.text = PromptText(ordinary_tokens(tokenizer, backbone)[:1], backbone.hidden_size, trainable=False)

    def weave(self, backbone: Backbone) -> Woven:
        gated = []
        names = self._attention_modules(backbone)[-len(self.prompts) :]
        for name, prompt, gate in zip(names, self.prompts.to(backbone.dtype), self.gates, strict=True):
            module = backbone.model.get_submodule(name)
            key, value = module.get_submodule("k_proj")(prompt), module.get_submodule("v_proj")(prompt)
            gated.append((name, GatedPrompt(_normed(module, key), value, gate.tanh())))
        return Woven(gated=gated)

    def _attention_modules(self, backbone: Backbone) -> list[str]:
        # Which module attends in which layer is learned by reading; one token is enough.
        if self._read_once is None:
            with torch.inference_mode(False), torch.no_grad():
                read: PromptSemantics = read_keys_and_values(backbone, self.text(backbone), "llama_adapter")
            modules = [backbone.model.get_submodule(name) for name in read.modules]
            if not all(hasattr(module, "k_proj") and hasattr(module, "v_proj") for module in modules):
                raise UserError(_not_available(backbone))
            for module in modules:
                _check_attention(module, backbone)
            self._read_once = read.modules
        names: list[str] = self._read_once
        return names


_KNOWN_PARTS = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense", "q_norm", "k_norm", "rotary_emb"}
)
"""What an attention layer may be made of, so that its prompt is projected as its input is."""


def _check_attention(module: nn.Module, backbone: Backbone) -> None:
    """Refuses attention that does more to keys, values or scores than this module repeats for the prompt.

    Raises:
        UserError: naming what it does.
    """
    unknown = [
        name
        for name, part in module.named_children()
        if name not in _KNOWN_PARTS and ("norm" in name or any(True for _ in part.parameters()))
    ]
    unknown += [name for name, _ in module.named_parameters(recurse=False)]
    norm = getattr(module, "k_norm", None)
    if norm is not None and not isinstance(norm, nn.Identity) and not hasattr(norm, "weight"):
        unknown.append("k_norm without a weight")
    shape = _norm_shape(module)
    if shape is not None and (len(shape) > 1 or backbone.key_value_width % shape[0]):
        unknown.append(f"k_norm of shape {list(shape)}")
    if getattr(backbone.config, "attn_logit_softcapping", None):
        unknown.append("attn_logit_softcapping")
    if unknown:
        raise UserError(
            f"method.name: llama_adapter is not available for {backbone.family}: its attention has "
            f"{', '.join(unknown)}, which the prompt would not pass through; use prefix_tuning"
        )


def _norm_shape(module: nn.Module) -> Sequence[int] | None:
    """Shape of the weight of the layer's norm of keys; None where it has none."""
    norm = getattr(module, "k_norm", None)
    if norm is None or isinstance(norm, nn.Identity) or not hasattr(norm, "weight"):
        return None
    # Under ZeRO-3 a weight outside its module's forward is empty; its shape is kept beside it.
    shape: Sequence[int] = getattr(norm.weight, "ds_shape", norm.weight.shape)
    return shape


def _normed(module: nn.Module, key: torch.Tensor) -> torch.Tensor:
    """Keys [P, kv_heads * head_dim] through the layer's own norm of keys, where it has one: per head, or over all."""
    shape = _norm_shape(module)
    if shape is None:
        return key
    normed: torch.Tensor = module.get_submodule("k_norm")(key.unflatten(-1, (-1, shape[0])))
    return normed.flatten(-2)


def _not_available(backbone: Backbone) -> str:
    return (
        f"method.name: llama_adapter is not available for {backbone.family}: it needs attention layers with separate "
        "key and value projections (LLaMA, Mistral, Qwen2, Phi, OPT); use prefix_tuning"
    )
