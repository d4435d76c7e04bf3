"""Zero-shot and few-shot answers (arXiv 2005.14165): the frozen language model reads the template, nothing trains.

Template and demonstrations: `sktune.methods.template`.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.in_context.config import InContextConfig
from sktune.methods.inside import InsideTheBackbone


class InContext(InsideTheBackbone):
    """The frozen model as it is."""

    def __init__(
        self,
        method: InContextConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
