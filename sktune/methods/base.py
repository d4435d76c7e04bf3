"""What a tuning method is: a way for the frozen model to read an input."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from sktune.backbone import Backbone


class Method(Protocol):
    """A module with the method's trainable parameters (fp32); it does not own the backbone."""

    reads_text: bool
    """True where a text opens the sequence, so that the input itself carries no BOS."""

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
