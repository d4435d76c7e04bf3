"""Prompt-based fine-tuning (PET, arXiv 2001.07676; LM-BFF, arXiv 2012.15723): the language model learns to answer.

Template and answer: `sktune.methods.template`; the answer is given by the language model's own head.
"""

from __future__ import annotations

from typing import Any

from sktune.backbone import Backbone
from sktune.methods.prompt_based.config import PromptBasedConfig
from sktune.methods.template.method import TemplateMethod
from sktune.methods.unfrozen import train_in_fp32, train_top_blocks


class PromptBased(TemplateMethod):
    """Trains the whole model with its head, or the uppermost blocks alone."""

    def __init__(self, config: PromptBasedConfig, backbone: Backbone, *_: Any) -> None:
        super().__init__()
        if config.layers is None:
            train_in_fp32(backbone, backbone.model.parameters())
        else:
            train_top_blocks(backbone, config.layers)
