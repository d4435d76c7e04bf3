"""SK-Prompt: refined hidden states of the text in front of the input's embeddings (section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, read_hidden_states
from sktune.methods.prompt_text import PromptText, encode_prompt_text
from sktune.methods.semantic.adapter import ReadSemantics, SemanticAdapter
from sktune.methods.sk_prompt.config import SKPromptConfig
from sktune.methods.weaving import PromptInFront, refuse_narrow_embeddings


class SKPrompt(PromptInFront):
    """z = F(s), s the text after `cut_layer` blocks, read by the model as if it were token embeddings."""


    def __init__(
        self,
        method: SKPromptConfig,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        depth = backbone.config.num_hidden_layers
        if method.cut_layer > depth:
            raise ValueError(
                f"method.cut_layer: {method.cut_layer} is above the model's {depth} blocks; allowed: 0 to {depth}"
            )
        refuse_narrow_embeddings("sk_prompt", backbone)
        self.text = PromptText(encode_prompt_text(tokenizer, method.text), backbone.hidden_size, method.trainable_text)
        self.cut_layer = method.cut_layer
        self.read_once = method.semantics == "cached" and not method.trainable_text
        self.adapter = SemanticAdapter(method, 1, backbone.hidden_size)
        self._semantics: ReadSemantics | None = None

    def prompt_length(self) -> int:
        return len(self.text)

    def _read(self, backbone: Backbone) -> ReadSemantics:
        if self._semantics is not None:
            return self._semantics
        with_gradient = torch.is_grad_enabled() and self.text.change is not None
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            semantics = self.adapter.read(read_hidden_states(backbone, self.text(backbone), self.cut_layer)[None])
        if self.read_once:
            self._semantics = semantics
        return semantics

    def prompt(self, backbone: Backbone) -> torch.Tensor:
        """The refined prompt [1, P, d] in fp32."""
        return self.adapter(self._read(backbone))
