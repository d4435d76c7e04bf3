"""The baseline: a head on the features of the frozen model, which reads the input alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.recipe.methods import HeadOnlyMethod


class HeadOnly(nn.Module):
    """Nothing in front of the input, nothing to train besides the head."""

    reads_text = False

    def __init__(
        self,
        method: HeadOnlyMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()

    def prompt_length(self) -> int:
        return 0

    def forward(
        self, backbone: Backbone, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return backbone(inputs_embeds, attention_mask, **options)
