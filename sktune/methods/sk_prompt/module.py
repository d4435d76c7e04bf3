"""SK-Prompt: refined hidden states of the text in front of the input's embeddings (section 4.3)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, Woven, read_hidden_states
from sktune.errors import UserError
from sktune.methods.method import refuse_narrow_embeddings
from sktune.methods.semantic.adapter import ReadSemantics, SemanticAdapter
from sktune.methods.semantic.text import SemanticMethod
from sktune.methods.sk_prompt.config import SKPromptConfig


class SKPrompt(SemanticMethod[ReadSemantics]):
    """z = F(s), s the text after `cut_layer` blocks, read by the model as if it were token embeddings."""

    def __init__(self, config: SKPromptConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *_: Any) -> None:
        depth = backbone.config.num_hidden_layers
        if config.cut_layer > depth:
            raise UserError(
                f"method.cut_layer: {config.cut_layer} is above the model's {depth} blocks; allowed: 0 to {depth}"
            )
        refuse_narrow_embeddings("sk_prompt", backbone)
        super().__init__(config, backbone, tokenizer)
        self.cut_layer = config.cut_layer
        self.adapter = SemanticAdapter(config, 1, backbone.hidden_size)

    def read(self, backbone: Backbone, embeds: torch.Tensor) -> ReadSemantics:
        return self.adapter.read(read_hidden_states(backbone, embeds, self.cut_layer)[None])

    def weave(self, backbone: Backbone) -> Woven:
        return Woven(prompt=self.adapter(self.semantics(backbone)))
