"""What a tuning method is: a way for the frozen model to read an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods import METHODS
from sktune.methods.config import MethodConfig


class Method(Protocol):
    """A module with the method's trainable parameters (fp32); it does not own the backbone."""

    def prompt_length(self) -> int:
        """Positions taken in front of the input."""
        ...

    def __call__(
        self,
        backbone: Backbone,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        with_lm_head: bool = False,
        keep_positions: torch.Tensor | None = None,
        **model_inputs: Any,
    ) -> torch.Tensor:
        """Hidden states [B, L, d] of the input's own positions, or logits [B, k or L, V] with the LM head.

        inputs_embeds [B, L, d] and attention_mask [B, L] are right-padded; keep_positions [k] counts in the input.
        """
        ...


def build_method(
    config: MethodConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] = ()
) -> Method:
    """The method's module, for this backbone; methods that train inside the backbone change it.

    Args:
        config: the recipe's section `method`.
        backbone: frozen, loaded.
        tokenizer: the model's.
        labels: names of the task's labels, for methods that start from them.

    Raises:
        ValueError: where the architecture, the text or the labels do not suit the method.
    """
    method: Method = METHODS.implementation(config.name)(config, backbone, tokenizer, labels)
    return method
