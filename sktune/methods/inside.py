"""Methods whose parameters sit inside the backbone: the input is read as it is, by a model that has changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sktune.backbone import Backbone


class InsideTheBackbone(nn.Module):
    """Reads the input alone. What trains, if anything, belongs to the backbone's modules, named and saved with them."""


    def prompt_length(self) -> int:
        return 0

    def forward(
        self, backbone: Backbone, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return backbone(inputs_embeds, attention_mask, **options)
