"""LoRA through peft: low-rank updates inside the frozen linear layers, quantized or not (arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners.lora import LoraLayer

from sktune.backbone import Backbone, Woven
from sktune.methods.lora.config import LoraConfig
from sktune.methods.method import Method
from sktune.methods.peft_layers import inject, lower_blocks
from sktune.methods.peft_targets import lora_targets


class Lora(Method):
    """W x + (alpha / rank) B A x, B zero at the start."""

    def __init__(self, config: LoraConfig, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        layers = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=lora_targets(backbone, config.target_modules),
            fan_in_fan_out=backbone.stores_transposed,
            exclude_modules=lower_blocks(backbone, config.layers),
        )
        inserted = inject(layers, backbone, config.name, LoraLayer)
        self.peft_adapter, self.layers = inserted.adapter, inserted.places
        if config.dropout:
            own = f".lora_dropout.{self.peft_adapter}"
            backbone.let_train(m for key, m in backbone.model.named_modules() if key.endswith(own))

    def weave(self, backbone: Backbone) -> Woven:
        return Woven(layers=self.layers)
