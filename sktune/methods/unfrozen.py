"""Training the backbone's own weights, or what was put between them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sktune.backbone import Backbone
from sktune.methods.upper_layers import number_of


def train_top_blocks(backbone: Backbone, layers: int | str) -> None:
    """Makes the uppermost blocks trainable: so many, or a share of them.

    Raises:
        UserError: where the model has fewer.
    """
    depth = len(backbone.blocks)
    train_in_fp32(backbone, backbone.blocks[depth - number_of(layers, depth) :].parameters())


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
