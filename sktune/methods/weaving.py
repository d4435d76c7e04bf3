"""The two ways a prompt enters the frozen model: in front of the embeddings, or in front of every layer's keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from sktune.backbone import Backbone
from sktune.backbone.attention import LayerKeyValues

T = TypeVar("T")


class Woven(nn.Module):
    """A method whose prompt depends on its parameters alone, so that one made for evaluation serves all of it."""

    _made: tuple[int, Any] | None = None

    def once_in_evaluation(self, make: Callable[[], T]) -> T:
        """What `make` returns; outside training, made again only when a parameter has changed.

        The pass of an evaluation or prediction is then the frozen model's alone.
        """
        if self.training or torch.is_grad_enabled():
            return make()
        # Counts in-place changes; ZeRO-3's updates it does not see, but those happen in training mode.
        version = sum(parameter._version for parameter in self.parameters())
        if self._made is None or self._made[0] != version:
            self._made = version, make()
        made: T = self._made[1]
        return made

    def train(self, mode: bool = True) -> Self:
        self._made = None
        return super().train(mode)


class PromptInFront(Woven):
    """Positions of the method's own before the input's; the heads see the input's alone."""

    @abstractmethod
    def prompt_length(self) -> int:
        """Positions P of the prompt."""

    @abstractmethod
    def prompt(self, backbone: Backbone) -> torch.Tensor:
        """Embeddings [1, P, d] of the prompt, in any float dtype."""

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
        count = self.prompt_length()
        prompt = self.once_in_evaluation(lambda: self.prompt(backbone).to(inputs_embeds.dtype))
        prompt = prompt.expand(inputs_embeds.shape[0], -1, -1)
        # The prompt belongs to an encoder's first segment.
        types = {} if token_type_ids is None else {"token_type_ids": F.pad(token_type_ids, (count, 0))}
        output = backbone(
            torch.cat((prompt, inputs_embeds), dim=1),
            F.pad(attention_mask, (count, 0), value=1),
            with_lm_head=with_lm_head,
            keep_positions=None if keep_positions is None else keep_positions + count,
            **types,
        )
        return output if keep_positions is not None else output[:, count:]


class PrefixInEveryLayer(Woven):
    """Keys and values of the method's own before each layer's, visible from every position."""

    @abstractmethod
    def prompt_length(self) -> int:
        """Positions P of the prefix."""

    @abstractmethod
    def prefix(self, backbone: Backbone) -> list[tuple[nn.Module, LayerKeyValues]]:
        """Each attention module with its keys and values, [1, kv_heads, P, head_dim]."""

    def forward(
        self, backbone: Backbone, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        prefix = self.once_in_evaluation(lambda: self.prefix(backbone))
        return backbone(inputs_embeds, attention_mask, first_position=self.prompt_length(), prefix=prefix, **options)


def refuse_narrow_embeddings(method: str, backbone: Backbone) -> None:
    """Refuses models that embed tokens in another width than they compute in.

    Raises:
        ValueError: naming the family and both widths.
    """
    width = backbone.base.get_input_embeddings().embedding_dim
    if width != backbone.hidden_size:
        raise ValueError(
            f"method.name: {method} is not available for this {backbone.family}: it embeds tokens in {width} "
            f"features and computes in {backbone.hidden_size}; use a prefix method"
        )


def split_heads(
    modules: list[nn.Module], keys_and_values: torch.Tensor, kv_heads: int
) -> list[tuple[nn.Module, LayerKeyValues]]:
    """Keys and values [2, layers, P, kv_heads * head_dim] to each attention module's [1, kv_heads, P, head_dim]."""
    heads = keys_and_values.unflatten(-1, (kv_heads, -1)).transpose(2, 3)
    return [(module, LayerKeyValues(heads[0, i : i + 1], heads[1, i : i + 1])) for i, module in enumerate(modules)]
