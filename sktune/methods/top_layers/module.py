"""Fine-tuning of the upper blocks."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone
from sktune.methods.top_layers.config import TopLayersConfig
from sktune.methods.unfrozen import train_top_blocks


class TopLayers(InsideTheBackbone):
    """The uppermost blocks train; those below stay frozen."""

    def __init__(
        self,
        method: TopLayersConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        train_top_blocks(backbone, method.layers)
