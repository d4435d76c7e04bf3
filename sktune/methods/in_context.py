"""Zero-shot and few-shot answers (arXiv 2005.14165): the frozen language model reads the template, nothing trains.

Template and demonstrations are the data's part (`sktune.data.encode_template`).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone
from sktune.recipe.methods import InContextMethod


class InContext(InsideTheBackbone):
    """The frozen model as it is."""

    def __init__(
        self,
        method: InContextMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
