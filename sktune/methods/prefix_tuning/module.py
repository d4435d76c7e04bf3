"""Prefix tuning: keys and values of their own in front of every layer's (arXiv 2101.00190), made by peft's module."""

from __future__ import annotations

from collections.abc import Sequence

import peft
import torch
from peft.tuners.prefix_tuning import PrefixEncoder
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, PromptSemantics, read_keys_and_values
from sktune.backbone.attention import LayerKeyValues
from sktune.methods.prefix_tuning.config import PrefixTuningConfig
from sktune.methods.prompt_text import PromptText, encode_prompt_text, ordinary_tokens
from sktune.methods.weaving import PrefixInEveryLayer, split_heads

DEFAULT_LENGTH = 20


class PrefixTuning(PrefixInEveryLayer):
    """P keys and values a layer, from noise or as differences from those the model makes of a text."""

    def __init__(
        self,
        method: PrefixTuningConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        backbone.use_prefix_attention()
        self.layers: int = backbone.config.num_hidden_layers
        self.width = backbone.key_value_width
        self.encoder: nn.Module | None = None
        self.change: nn.Parameter | None = None
        if method.init == "text":
            assert method.text is not None
            ids = encode_prompt_text(tokenizer, method.text)
            if method.num_virtual_tokens is not None and method.num_virtual_tokens > len(ids):
                raise ValueError(
                    f"method.num_virtual_tokens: {method.num_virtual_tokens} is more than the {len(ids)} tokens of the "
                    f"text that the prefix starts from; allowed: 1 to {len(ids)}, or null"
                )
            ids = ids[: method.num_virtual_tokens]
            self._length = len(ids)
            self.change = nn.Parameter(torch.zeros(2, self.layers, self._length, self.width))
        else:
            # Which module attends in which layer is learned by reading; one token is enough.
            ids = ordinary_tokens(tokenizer)[:1]
            self._length = method.num_virtual_tokens or DEFAULT_LENGTH
            config = peft.PrefixTuningConfig(
                num_virtual_tokens=self._length,
                token_dim=self.width,
                num_layers=self.layers,
                encoder_hidden_size=method.hidden_size,
                prefix_projection=method.reparametrize,
            )
            self.encoder = PrefixEncoder(config)
        self.text = PromptText(ids, backbone.hidden_size, trainable=False)
        self._read_once: PromptSemantics | None = None

    def prompt_length(self) -> int:
        return self._length

    def prefix(self, backbone: Backbone) -> list[tuple[nn.Module, LayerKeyValues]]:
        if self._read_once is None:
            with torch.inference_mode(False), torch.no_grad():
                self._read_once = read_keys_and_values(backbone, self.text(backbone))
        read = self._read_once
        if self.change is not None:
            both = read.states + self.change
        else:
            assert self.encoder is not None
            positions = torch.arange(self._length, device=read.states.device)
            # peft's order: each layer's keys, then its values.
            flat: torch.Tensor = self.encoder(positions)  # [P, layers * 2 * width]
            both = flat.view(self._length, self.layers, 2, self.width).permute(2, 1, 0, 3)
        return split_heads(read.modules, both.to(read.states.dtype), read.kv_heads)
