"""The first pass: what the frozen model makes of the prompt text (SK-Tuning, sections 4.2 and 4.3).

Both readers take the text's embeddings, so that a trainable copy of them can be read with gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from sktune.backbone.attention import LayerKeyValues
from sktune.backbone.frozen import Backbone
from sktune.errors import UserError


class PromptSemantics(NamedTuple):
    """Keys and values of the text in every layer, and the names of the attention modules they belong to."""

    modules: list[str]
    states: torch.Tensor
    """[2, layers, P, kv_heads * head_dim]: the keys, then the values, in the backbone's dtype"""
    kv_heads: int

    def prefix(self, states: torch.Tensor) -> list[tuple[str, LayerKeyValues]]:
        """A prefix of other keys and values, for the modules.

        Args:
            states: [2, upper layers, P, kv_heads * head_dim], any float dtype; the layers below keep the text's own.
        """
        below, upper = len(self.modules) - states.shape[1], self._by_heads(states)
        own = self._by_heads(self.states[:, :below])
        layers = [(own, i) for i in range(below)] + [(upper, i) for i in range(states.shape[1])]
        return [
            (name, LayerKeyValues(heads[0, i : i + 1], heads[1, i : i + 1]))
            for name, (heads, i) in zip(self.modules, layers, strict=True)
        ]

    def _by_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(self.states.dtype).unflatten(-1, (self.kv_heads, -1)).transpose(2, 3)


@torch.compiler.disable
def read_keys_and_values(backbone: Backbone, embeds: torch.Tensor) -> PromptSemantics:
    """Reads the text with the whole model and keeps every layer's keys and values (SK-Prefix).

    Args:
        backbone: prepared by `use_prefix_attention`.
        embeds: [1, P, d], the text's token embeddings.

    Raises:
        UserError: where the layers do not each have their own attention of one shape.
    """
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    with backbone.without_checkpointing():
        if backbone.uses_cache_for_prefix:
            cache = DynamicCache()
            backbone(embeds, mask, past_key_values=cache)
            record = [
                (module, LayerKeyValues(cache.layers[i].keys, cache.layers[i].values))  # type: ignore[union-attr,arg-type]
                for i, module in enumerate(backbone.blocks)
            ]
        else:
            record = []
            backbone(embeds, mask, record=record)
    modules = [module for module, _ in record]
    shapes = {states.shape for _, kv in record for states in kv}
    depth = backbone.config.num_hidden_layers
    if len(set(map(id, modules))) != depth or len(record) != depth or len(shapes) != 1:
        raise UserError(
            f"method.name: a prefix made of a text is not available for {backbone.family}: it needs one "
            f"self-attention of the same shape in each of its {depth} layers; choose a method in front of the input "
            "(`sktune list methods`)"
        )
    # [2, layers, kv_heads, P, head_dim]; kept for the whole run, so in one piece and without a second copy.
    states = torch.stack([torch.cat(of_all) for of_all in zip(*(kv for _, kv in record), strict=True)])
    name_of = {id(module): name for name, module in backbone.model.named_modules()}
    return PromptSemantics(
        [name_of[id(module)] for module in modules], states.transpose(2, 3).flatten(3), states.shape[2]
    )


@torch.compiler.disable
def read_hidden_states(backbone: Backbone, embeds: torch.Tensor, cut_layer: int) -> torch.Tensor:
    """What the text is after `cut_layer` blocks (SK-Prompt); the blocks above are not run.

    Args:
        backbone: the frozen model.
        embeds: [1, P, d], the text's token embeddings.
        cut_layer: 0 returns the embeddings themselves (section 4.3), k the hidden states after k blocks.

    Returns:
        [P, d].

    Raises:
        UserError: where the model has fewer blocks.
    """
    depth = backbone.config.num_hidden_layers
    if cut_layer > depth:
        raise UserError(f"method.cut_layer: {cut_layer} is above the model's {depth} blocks; allowed: 0 to {depth}")
    if cut_layer == 0:
        return embeds[0]
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = backbone.blocks[cut_layer - 1].register_forward_hook(keep)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    try:
        with backbone.without_checkpointing(), backbone.only_first_blocks(cut_layer):
            backbone(embeds, mask)
    finally:
        handle.remove()
    assert len(kept) == 1
    return kept[0][0]
