"""SK-Prompt: refined hidden states of the text in front of the input's embeddings (section 4.3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, read_hidden_states
from sktune.methods.adapter import SemanticAdapter
from sktune.methods.prompt_text import PromptText, encode_prompt_text
from sktune.recipe.schema import SKPromptMethod


class SKPrompt(nn.Module):
    """z = F(s), s the text after `cut_layer` blocks, read by the model as if it were token embeddings."""

    reads_text = True

    def __init__(self, method: SKPromptMethod, backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        depth = backbone.config.num_hidden_layers
        if method.cut_layer > depth:
            raise ValueError(
                f"method.cut_layer: {method.cut_layer} is above the model's {depth} blocks; allowed: 0 to {depth}"
            )
        width = backbone.base.get_input_embeddings().embedding_dim
        if width != backbone.hidden_size:
            raise ValueError(
                f"method.name: sk_prompt is not available for this {backbone.family}: it embeds tokens in {width} "
                f"features and computes in {backbone.hidden_size}; use sk_prefix"
            )
        self.text = PromptText(encode_prompt_text(tokenizer, method.text), backbone.hidden_size, method.trainable_text)
        self.cut_layer = method.cut_layer
        self.read_once = method.semantics == "cached" and not method.trainable_text
        self.adapter = SemanticAdapter(method, 1, backbone.hidden_size)
        self._semantics: torch.Tensor | None = None

    def prompt_length(self) -> int:
        return len(self.text)

    def _read(self, backbone: Backbone) -> torch.Tensor:
        if self._semantics is not None:
            return self._semantics
        with_gradient = torch.is_grad_enabled() and self.text.change is not None
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            semantics = read_hidden_states(backbone, self.text(backbone), self.cut_layer)
        if self.read_once:
            self._semantics = semantics
        return semantics

    def prompt(self, backbone: Backbone) -> torch.Tensor:
        """The refined prompt [1, P, d], in the backbone's dtype."""
        semantics = self._read(backbone)
        return self.adapter(semantics[None]).to(semantics.dtype)

    def forward(
        self,
        backbone: Backbone,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        with_lm_head: bool = False,
        keep_positions: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        count = len(self.text)
        prompt = self.prompt(backbone).expand(inputs_embeds.shape[0], -1, -1)
        # The text is an encoder's first segment.
        types = {} if token_type_ids is None else {"token_type_ids": F.pad(token_type_ids, (count, 0))}
        output = backbone(
            torch.cat((prompt.to(inputs_embeds.dtype), inputs_embeds), dim=1),
            F.pad(attention_mask, (count, 0), value=1),
            with_lm_head=with_lm_head,
            keep_positions=None if keep_positions is None else keep_positions + count,
            **types,
        )
        return output if keep_positions is not None else output[:, count:]
