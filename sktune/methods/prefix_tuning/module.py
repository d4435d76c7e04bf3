"""Prefix tuning: keys and values of their own in front of every layer's (arXiv 2101.00190), made by peft's module."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft.tuners.prefix_tuning import PrefixEncoder
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, Woven, read_keys_and_values
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.prefix_tuning.config import PrefixTuningConfig
from sktune.methods.prompt_text import PromptText, encode_prompt_text, ordinary_tokens
from sktune.methods.upper_layers import number_of

DEFAULT_LENGTH = 20


class PrefixTuning(Method):
    """P keys and values a layer, from noise or as differences from those the model makes of a text.

    With a text, the layers below the upper `layers` see the text's own.
    """

    def __init__(
        self, config: PrefixTuningConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any
    ) -> None:
        super().__init__()
        backbone.use_prefix_attention("prefix_tuning")
        self.layers = number_of(config.layers, backbone.config.num_hidden_layers)
        self.width = backbone.key_value_width
        self.encoder: nn.Module | None = None
        self.change: nn.Parameter | None = None
        if config.init == "text":
            assert config.text is not None
            ids = encode_prompt_text(tokenizer, config.text)
            if config.num_virtual_tokens is not None and config.num_virtual_tokens > len(ids):
                raise UserError(
                    f"method.num_virtual_tokens: {config.num_virtual_tokens} is more than the {len(ids)} tokens of the "
                    f"text that the prefix starts from; allowed: 1 to {len(ids)}, or null"
                )
            ids = ids[: config.num_virtual_tokens]
            self.positions = len(ids)
            self.change = nn.Parameter(torch.zeros(2, self.layers, self.positions, self.width))
        else:
            # Which module attends in which layer is learned by reading; one token is enough.
            ids = ordinary_tokens(tokenizer, backbone)[:1]
            self.positions = config.num_virtual_tokens or DEFAULT_LENGTH
            settings = peft.PrefixTuningConfig(
                num_virtual_tokens=self.positions,
                token_dim=self.width,
                num_layers=self.layers,
                encoder_hidden_size=config.hidden_size,
                prefix_projection=config.reparametrize,
            )
            self.encoder = PrefixEncoder(settings)
        self.text = PromptText(ids, backbone.hidden_size, trainable=False)

    def weave(self, backbone: Backbone) -> Woven:
        if self._read_once is None:
            with torch.inference_mode(False), torch.no_grad():
                self._read_once = read_keys_and_values(backbone, self.text(backbone), "prefix_tuning")
        read: PromptSemantics = self._read_once
        if self.change is not None:
            both = read.states[:, -self.layers :] + self.change
        else:
            assert self.encoder is not None
            positions = torch.arange(self.positions, device=read.states.device)
            # peft's order: each layer's keys, then its values.
            flat: torch.Tensor = self.encoder(positions)  # [P, layers * 2 * width]
            both = flat.view(self.positions, self.layers, 2, self.width).permute(2, 1, 0, 3)
        return Woven(prefix=read.prefix(both))
