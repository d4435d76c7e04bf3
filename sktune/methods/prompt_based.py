"""Prompt-based fine-tuning (PET, arXiv 2001.07676; LM-BFF, arXiv 2012.15723): the language model learns to answer.

The template is the data's part (`sktune.data.encode_template`), the answer the language model's own head's.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone, train_in_fp32
from sktune.methods.unfrozen import train_top_blocks
from sktune.recipe.methods import PromptBasedMethod


class PromptBased(InsideTheBackbone):
    """Trains the whole model with its head, or the uppermost blocks alone."""

    def __init__(
        self,
        method: PromptBasedMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if method.layers is None:
            train_in_fp32(backbone, backbone.model.parameters())
        else:
            train_top_blocks(backbone, method.layers)
