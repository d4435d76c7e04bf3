"""Fine-tuning of the upper blocks."""

from __future__ import annotations

from typing import Any

from sktune.backbone import Backbone
from sktune.methods.method import Method
from sktune.methods.top_layers.config import TopLayersConfig
from sktune.methods.unfrozen import train_top_blocks


class TopLayers(Method):
    """The uppermost blocks train; those below stay frozen."""

    def __init__(self, config: TopLayersConfig, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        train_top_blocks(backbone, config.layers)
