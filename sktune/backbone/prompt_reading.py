"""The first pass: what the frozen model makes of the prompt text (SK-Tuning, sections 4.2 and 4.3).

Both readers take the text's embeddings, so that a trainable copy of them can be read with gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from sktune.backbone.attention import LayerKeyValues
from sktune.backbone.frozen import Backbone
from sktune.errors import UserError


class PromptSemantics(NamedTuple):
    """Keys and values of the text in every layer, and the names of the attention modules they belong to."""

    modules: list[str]
    states: torch.Tensor
    """[2, layers, P, kv_heads * head_dim]: the keys, then the values, in the backbone's dtype.

    Where the two are of different widths (multi-head latent attention), the narrower ones' heads end in zeros.
    """
    kv_heads: int
    widths: tuple[int, int]
    """head_dim of the keys and of the values."""

    def prefix(self, states: torch.Tensor) -> list[tuple[str, LayerKeyValues]]:
        """A prefix of other keys and values, for the modules.

        Args:
            states: [2, upper layers, P, kv_heads * head_dim], any float dtype; the layers below keep the text's own.
        """
        below, upper = len(self.modules) - states.shape[1], self._by_heads(states)
        own = self._by_heads(self.states[:, :below])
        layers = [(own, i) for i in range(below)] + [(upper, i) for i in range(states.shape[1])]
        key, value = self.widths
        return [
            (name, LayerKeyValues(heads[0, i : i + 1, ..., :key], heads[1, i : i + 1, ..., :value]))
            for name, (heads, i) in zip(self.modules, layers, strict=True)
        ]

    def _by_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(self.states.dtype).unflatten(-1, (self.kv_heads, -1)).transpose(2, 3)


@torch.compiler.disable
def read_keys_and_values(backbone: Backbone, embeds: torch.Tensor, method: str) -> PromptSemantics:
    """Reads the text with the model and keeps the keys and values of every layer that is run (SK-Prefix).

    Args:
        backbone: prepared by `use_prefix_attention`.
        embeds: [1, P, d], the text's token embeddings.
        method: the name to refuse where that cannot be.

    Raises:
        UserError: where the layers do not each have their own attention of one shape, the one its configuration says.
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
    shapes = {(kv.key.shape, kv.value.shape[-1]) for _, kv in record if kv.key.shape[:-1] == kv.value.shape[:-1]}
    depth = backbone.config.num_hidden_layers
    regular = len(set(map(id, modules))) == len(record) == depth - backbone.passed_over and len(shapes) == 1
    widths = (record[0][1].key.shape[-1], record[0][1].value.shape[-1]) if record else (0, 0)
    if not regular or record[0][1].key.shape[1] * max(widths) != backbone.key_value_width:
        raise UserError(
            f"method.name: {method} is not available for {backbone.family}: it needs one self-attention of the same "
            f"shape in each of its {depth} layers; choose a method in front of the input (`sktune list methods`)"
        )
    # [2, layers, kv_heads, P, head_dim]; kept for the whole run, so in one piece and without a second copy.
    states = torch.stack(
        [
            F.pad(torch.cat(of_all), (0, max(widths) - width))
            for of_all, width in zip(zip(*(kv for _, kv in record), strict=True), widths, strict=True)
        ]
    )
    name_of = {id(module): name for name, module in backbone.model.named_modules()}
    return PromptSemantics(
        [name_of[id(module)] for module in modules], states.transpose(2, 3).flatten(3), states.shape[2], widths
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
