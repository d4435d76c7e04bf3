"""Fine-tuning in the plain sense: the whole model is trained as it is."""

from __future__ import annotations

from typing import Any

from sktune.backbone import Backbone
from sktune.methods.full.config import FullFineTuningConfig
from sktune.methods.method import Method
from sktune.methods.unfrozen import train_in_fp32


class FullFineTuning(Method):
    """All of the model trains, the token embeddings and the language model's head included; not what nothing reads."""

    def __init__(self, config: FullFineTuningConfig, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        unread = set(map(id, backbone.unread_parameters()))
        train_in_fp32(backbone, (p for p in backbone.model.parameters() if id(p) not in unread))
