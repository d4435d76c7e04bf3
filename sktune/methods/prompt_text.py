"""The prompt text: its tokens, its embeddings, and optionally a trainable copy of them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.errors import UserError


def encode_prompt_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of the text with the special tokens that open a sequence (BOS, or CLS and SEP of an encoder)."""
    ids: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    if tokenizer.cls_token_id is None and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # the input goes on after the text: the sequence does not end here
    if not ids:
        raise UserError(f"method.text: {text!r} has no tokens; write what the task is, in words")
    return ids


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, backbone: Backbone) -> list[int]:
    """Ids of the vocabulary but for the special tokens', in order; those that the model has embeddings for."""
    special = set(tokenizer.all_special_ids)
    return [token for token in range(min(len(tokenizer), backbone.vocabulary_size)) if token not in special]


class PromptText(nn.Module):
    """Embeds the text.

    With `trainable`, the copy that trains is held as its difference from the frozen embeddings: the same
    P x d parameters, but nothing of the backbone has to be read before it is sharded. Tokens that were `drawn` at
    random are kept with the difference: it means nothing without them.
    """

    input_ids: torch.Tensor

    def __init__(self, input_ids: list[int], hidden_size: int, trainable: bool, drawn: bool = False) -> None:
        super().__init__()
        self.drawn = drawn
        self.register_buffer("input_ids", torch.tensor([input_ids]), persistent=drawn)
        self.change = nn.Parameter(torch.zeros(len(input_ids), hidden_size)) if trainable else None

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def forward(self, backbone: Backbone) -> torch.Tensor:
        """[1, P, d] in the backbone's dtype."""
        embeds = backbone.embed(self.input_ids)
        return embeds if self.change is None else (embeds.float() + self.change).to(embeds.dtype)
