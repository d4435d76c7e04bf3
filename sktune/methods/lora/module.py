"""LoRA through peft: low-rank updates inside the frozen linear layers, quantized or not (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence

import peft
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone
from sktune.methods.lora.config import LoraConfig
from sktune.methods.peft_layers import inject


class Lora(InsideTheBackbone):
    """W x + (alpha / rank) B A x, B zero at the start."""

    def __init__(
        self,
        method: LoraConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        layers = peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=None if method.target_modules is None else list(method.target_modules),
            fan_in_fan_out=backbone.stores_transposed,
        )
        inject(layers, backbone, "lora")
        if method.dropout:
            backbone.let_train(m for key, m in backbone.model.named_modules() if key.endswith(".lora_dropout"))
