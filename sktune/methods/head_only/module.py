"""The baseline: a head on the features of the frozen model, which reads the input alone."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.head_only.config import HeadOnlyConfig
from sktune.methods.inside import InsideTheBackbone


class HeadOnly(InsideTheBackbone):
    """Nothing in front of the input, nothing to train besides the head."""

    def __init__(
        self,
        method: HeadOnlyConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
