"""P-tuning: a small network (peft's) makes the embeddings in front of the input (arXiv 2103.10385)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import PromptEncoder, PromptEncoderConfig
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, Woven
from sktune.errors import UserError
from sktune.methods.method import Method, refuse_narrow_embeddings
from sktune.methods.p_tuning.config import PTuningConfig
from sktune.methods.prompt_text import encode_prompt_text


class PTuning(Method):
    """P embeddings made by an MLP or an LSTM; of a template, the anchors stay the frozen model's own embeddings."""

    template_ids: torch.Tensor
    tuned: torch.Tensor

    def __init__(self, config: PTuningConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any) -> None:
        super().__init__()
        refuse_narrow_embeddings("p_tuning", backbone)
        if config.template is None:
            ids, tuned = [0] * config.num_virtual_tokens, [True] * config.num_virtual_tokens
        else:
            ids, tuned = _template(config.template, config.anchors, tokenizer)
        self.register_buffer("template_ids", torch.tensor([ids]), persistent=False)
        self.register_buffer("tuned", torch.tensor(tuned), persistent=False)
        self.positions, self._count = len(tuned), sum(tuned)
        settings = PromptEncoderConfig(
            num_virtual_tokens=self._count,
            token_dim=backbone.hidden_size,
            num_transformer_submodules=1,
            encoder_reparameterization_type=config.encoder.upper(),
            encoder_hidden_size=config.hidden_size,
            # peft's MLP has two hidden layers whatever this says, and warns of anything else.
            encoder_num_layers=config.num_layers if config.encoder == "lstm" else 2,
            encoder_dropout=0.0,
        )
        self.encoder = PromptEncoder(settings)

    def weave(self, backbone: Backbone) -> Woven:
        made: torch.Tensor = self.encoder(torch.arange(self._count, device=self.tuned.device)[None])
        if self._count == len(self.tuned):
            return Woven(prompt=made)
        prompt = backbone.embed(self.template_ids).float()
        return Woven(prompt=prompt.masked_scatter(self.tuned[None, :, None], made))


def _template(text: str, anchors: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Token ids of the template, and which of them are tuned: those that are neither special nor an anchor's."""
    spans = []
    for anchor in anchors:
        found = list(re.finditer(rf"(?<!\w){re.escape(anchor)}(?!\w)", text))
        if not found:
            raise UserError(f"method.anchors: {anchor!r} is not a word of method.template {text!r}")
        spans += [match.span() for match in found]
    ids = encode_prompt_text(tokenizer, text)
    offsets = tokenizer(text, add_special_tokens=True, return_offsets_mapping=True)["offset_mapping"][: len(ids)]
    tuned = [
        stop > start and not any(start < last and first < stop for first, last in spans) for start, stop in offsets
    ]
    if not any(tuned):
        raise UserError("method.anchors: nothing of method.template is left to be tuned; name fewer words")
    return ids, tuned
