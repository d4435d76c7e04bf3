"""SK-Prefix: every layer of the second pass sees refined keys and values of the text (section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, Woven, read_keys_and_values
from sktune.methods.semantic.adapter import ReadSemantics, SemanticAdapter
from sktune.methods.semantic.text import SemanticMethod
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.methods.upper_layers import number_of


class SKPrefix(SemanticMethod[tuple[PromptSemantics, ReadSemantics]]):
    """z_i = F_i(K_i, V_i) in front of layer i's own keys and values, visible from every position.

    One adapter for the keys and one for the values, of each layer or (`shared`) of all layers together; the layers
    below the upper `layers` see the text's own keys and values.
    """

    def __init__(self, config: SKPrefixConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any) -> None:
        super().__init__(config, backbone, tokenizer)
        backbone.use_prefix_attention("sk_prefix")
        self.shared = config.shared
        layers = number_of(config.layers, backbone.config.num_hidden_layers)
        self.layers = layers
        count = 2 * (1 if config.shared else layers)
        self.adapter = SemanticAdapter(config, count, backbone.key_value_width)

    def read(self, backbone: Backbone, embeds: torch.Tensor) -> tuple[PromptSemantics, ReadSemantics]:
        text = read_keys_and_values(backbone, embeds, "sk_prefix")
        read = self.adapter.read(text.states[:, -self.layers :])
        return text, read.flatten(1, 2) if self.shared else read.flatten(0, 1)

    def weave(self, backbone: Backbone) -> Woven:
        text, read = self.semantics(backbone)
        refined = self.adapter(read).view_as(text.states[:, -self.layers :])
        return Woven(prefix=text.prefix(refined))
