"""The text of SK-Prefix and SK-Prompt, and what the frozen model understood of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText, encode_prompt_text
from sktune.methods.semantic.config import SemanticConfig

S = TypeVar("S")


class SemanticMethod(Method, Generic[S]):
    """A method that refines the semantics of a text, read once or at every step."""

    def __init__(self, config: SemanticConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text = PromptText(encode_prompt_text(tokenizer, config.text), backbone.hidden_size, config.trainable_text)
        self.positions = len(self.text)
        self.read_once = config.semantics == "cached" and not config.trainable_text

    @abstractmethod
    def read(self, backbone: Backbone, embeds: torch.Tensor) -> S:
        """The semantics of the text, of its embeddings [1, P, d]."""

    def semantics(self, backbone: Backbone) -> S:
        """The semantics of the text, read again only where they change."""
        if self._read_once is not None:
            kept: S = self._read_once
            return kept
        # Without a trainable text the semantics are a constant of the frozen model. They outlive this call, so
        # they must not be inference tensors.
        with_gradient = torch.is_grad_enabled() and self.text.change is not None
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            semantics = self.read(backbone, self.text(backbone))
        if self.read_once:
            self._read_once = semantics
        return semantics
