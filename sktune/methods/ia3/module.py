"""IA3 through peft: learned scales inside the frozen linear layers, quantized or not (arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Sequence

import peft
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.ia3.config import IA3Config
from sktune.methods.inside import InsideTheBackbone
from sktune.methods.peft_layers import inject


class IA3(InsideTheBackbone):
    """Outputs of keys and values, and inputs of the feed-forward's last layer, times learned scales that start at 1."""

    def __init__(
        self,
        method: IA3Config,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        layers = peft.IA3Config(
            target_modules=None if method.target_modules is None else list(method.target_modules),
            feedforward_modules=None if method.feedforward_modules is None else list(method.feedforward_modules),
            fan_in_fan_out=backbone.stores_transposed,
        )
        inject(layers, backbone, "ia3")
