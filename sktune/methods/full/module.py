"""Fine-tuning in the plain sense: the whole model is trained as it is."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.full.config import FullFineTuningConfig
from sktune.methods.inside import InsideTheBackbone
from sktune.methods.unfrozen import train_in_fp32


class FullFineTuning(InsideTheBackbone):
    """All of the model trains, the token embeddings and the language model's head included."""

    def __init__(
        self,
        method: FullFineTuningConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        train_in_fp32(backbone, backbone.model.parameters())
