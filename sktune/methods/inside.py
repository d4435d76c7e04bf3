"""Methods whose parameters sit inside the backbone: the input is read as it is, by a model that has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sktune.backbone import Backbone


class InsideTheBackbone(nn.Module):
    """Reads the input alone. What trains, if anything, belongs to the backbone's modules, named and saved with them."""

    reads_text = False

    def prompt_length(self) -> int:
        return 0

    def forward(
        self, backbone: Backbone, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return backbone(inputs_embeds, attention_mask, **options)


def train_in_fp32(backbone: Backbone, parameters: Iterable[nn.Parameter]) -> None:
    """Makes parameters inside the backbone trainable, in fp32.

    Everything that trains has one dtype (design fact 5), whatever the backbone's is.
    """
    chosen = set(map(id, parameters))
    assert chosen, "nothing was chosen to train"
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in chosen:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
