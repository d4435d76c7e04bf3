"""IA3 through peft: learned scales inside the frozen linear layers, quantized or not (arXiv 2205.05638)."""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners.ia3 import IA3Layer

from sktune.backbone import Backbone, Woven
from sktune.methods.ia3.config import IA3Config
from sktune.methods.method import Method, without_decay
from sktune.methods.peft_layers import inject, lower_blocks
from sktune.methods.peft_targets import ia3_targets


class IA3(Method):
    """Outputs of keys and values, and inputs of the feed-forward's last layer, times learned scales that start at 1."""

    def __init__(self, config: IA3Config, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        targets, feedforward = ia3_targets(backbone, config.target_modules, config.feedforward_modules)
        layers = peft.IA3Config(
            target_modules=targets,
            feedforward_modules=feedforward,
            fan_in_fan_out=backbone.stores_transposed,
            exclude_modules=lower_blocks(backbone, config.layers),
        )
        inserted = inject(layers, backbone, config.name, IA3Layer)
        self.peft_adapter, self.layers = inserted.adapter, inserted.places
        without_decay(inserted.parameters)

    def weave(self, backbone: Backbone) -> Woven:
        return Woven(layers=self.layers)
