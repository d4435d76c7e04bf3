"""Bottleneck adapters behind the sublayers of every block (Houlsby: arXiv 1902.00751; Pfeiffer: 2005.00247)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sktune.backbone import Backbone, Woven
from sktune.methods.bottleneck_adapter.config import BottleneckAdapterConfig
from sktune.methods.method import Method
from sktune.methods.semantic.adapter import ACTIVATIONS
from sktune.methods.upper_layers import number_of


class Bottleneck(nn.Module):
    """h + W_up act(W_down h), W_up zero at the start: the identity before the first update."""

    def __init__(self, width: int, config: BottleneckAdapterConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.rank)
        self.up = nn.Linear(config.rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = config.activation
        self.dropout = config.dropout

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] in any float dtype -> the same; computed in fp32."""
        inner = ACTIVATIONS[self.activation](self.down(hidden.float()))
        return hidden + self.up(F.dropout(inner, self.dropout, self.training)).to(hidden.dtype)


class BottleneckAdapter(Method):
    """One adapter behind the feed-forward of each of the upper `layers`, houlsby: and one behind its attention too."""

    def __init__(self, config: BottleneckAdapterConfig, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        places = backbone.sublayer_outputs()
        places = places[-number_of(config.layers, len(places)) :]
        chosen = [place for pair in places for place in (pair if config.placement == "houlsby" else pair[1:])]
        self.adapters = nn.ModuleList(Bottleneck(backbone.hidden_size, config) for _ in chosen)
        name_of = {id(module): name for name, module in backbone.model.named_modules()}
        self.places = [name_of[id(place)] for place in chosen]
        if config.dropout:
            backbone.draws_random_numbers = True

    def weave(self, backbone: Backbone) -> Woven:
        return Woven(behind=list(zip(self.places, self.adapters, strict=True)))
