"""Prompt tuning: embeddings of their own in front of the input (arXiv 2104.08691); the noise start is peft's module."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import peft
import torch
from peft.tuners.prompt_tuning import PromptEmbedding
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, Woven
from sktune.errors import UserError
from sktune.methods.method import Method, refuse_narrow_embeddings
from sktune.methods.prompt_text import PromptText, encode_prompt_text, ordinary_tokens
from sktune.methods.prompt_tuning.config import PromptTuningConfig

DEFAULT_LENGTH = 20


class PromptTuning(Method):
    """P embeddings, started from noise, drawn tokens, a text, or the labels' names.

    What starts from tokens is held as its difference from their frozen embeddings (see `PromptText`).
    """

    def __init__(
        self, config: PromptTuningConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> None:
        super().__init__()
        refuse_narrow_embeddings("prompt_tuning", backbone)
        self.embedding: nn.Module | None = None
        self.tokens: PromptText | None = None
        length = config.num_virtual_tokens
        if config.init == "random":
            settings = peft.PromptTuningConfig(
                num_virtual_tokens=length or DEFAULT_LENGTH,
                token_dim=backbone.hidden_size,
                num_transformer_submodules=1,
            )
            self.embedding = PromptEmbedding(settings, None)
        else:
            ids = _start(config, backbone, tokenizer, labels)
            chosen = list(islice(cycle(ids), length or len(ids)))
            drawn = config.init == "vocabulary"
            self.tokens = PromptText(chosen, backbone.hidden_size, trainable=True, drawn=drawn)
        self.positions = length or (DEFAULT_LENGTH if self.tokens is None else len(self.tokens))

    def weave(self, backbone: Backbone) -> Woven:
        if self.tokens is not None:
            return Woven(prompt=self.tokens(backbone))
        assert self.embedding is not None
        weight = next(self.embedding.parameters())
        return Woven(prompt=self.embedding(torch.arange(self.positions, device=weight.device))[None])


def _start(
    config: PromptTuningConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
) -> list[int]:
    if config.init == "text":
        assert config.text is not None
        return encode_prompt_text(tokenizer, config.text)
    if config.init == "labels":
        ids = [token for label in labels for token in tokenizer(label, add_special_tokens=False)["input_ids"]]
        if not ids:
            raise UserError("method.init: labels needs a task with named labels; use vocabulary, text or random")
        return ids
    words = ordinary_tokens(tokenizer, backbone)
    # On the CPU, whatever the default device is: a plan builds the method without contents.
    drawn = torch.randint(len(words), (config.num_virtual_tokens or DEFAULT_LENGTH,), device="cpu")
    return [words[i] for i in drawn.tolist()]
