"""SK-Prefix: every layer of the second pass sees refined keys and values of the text (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, read_keys_and_values
from sktune.backbone.attention import LayerKeyValues
from sktune.methods.prompt_text import PromptText, encode_prompt_text
from sktune.methods.semantic.adapter import ReadSemantics, SemanticAdapter
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.methods.weaving import PrefixInEveryLayer, split_heads


class SKPrefix(PrefixInEveryLayer):
    """z_i = F_i(K_i, V_i) in front of layer i's own keys and values, visible from every position.

    One adapter for the keys and one for the values, of each layer or (`shared`) of all layers together.
    """


    def __init__(
        self,
        method: SKPrefixConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        backbone.use_prefix_attention()
        self.text = PromptText(encode_prompt_text(tokenizer, method.text), backbone.hidden_size, method.trainable_text)
        self.layers = backbone.config.num_hidden_layers
        self.shared = method.shared
        self.read_once = method.semantics == "cached" and not method.trainable_text
        self.adapter = SemanticAdapter(method, 2 * (1 if method.shared else self.layers), backbone.key_value_width)
        self._semantics: tuple[PromptSemantics, ReadSemantics] | None = None

    def prompt_length(self) -> int:
        return len(self.text)

    def _read(self, backbone: Backbone) -> tuple[PromptSemantics, ReadSemantics]:
        if self._semantics is not None:
            return self._semantics
        # Without a trainable text the semantics are a constant of the frozen model. They outlive this call, so
        # they must not be inference tensors.
        with_gradient = torch.is_grad_enabled() and self.text.change is not None
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            text = read_keys_and_values(backbone, self.text(backbone))
            read = self.adapter.read(text.states)
            semantics = text, read.flatten(1, 2) if self.shared else read.flatten(0, 1)
        if self.read_once:
            self._semantics = semantics
        return semantics

    def prefix(self, backbone: Backbone) -> list[tuple[nn.Module, LayerKeyValues]]:
        """Each attention module with its refined keys and values, [1, kv_heads, P, head_dim] in its dtype."""
        text, read = self._read(backbone)
        refined = self.adapter(read).view_as(text.states).to(text.states.dtype)
        return split_heads(text.modules, refined, text.kv_heads)
