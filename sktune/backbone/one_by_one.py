"""The lower blocks of a model held one at a time: for reading data through blocks that do not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sktune.allocator import give_back_freed_memory
from sktune.backbone.frozen import Backbone
from sktune.backbone.lower_blocks import Prefix, Record, beside_the_blocks, read_block
from sktune.backbone.placement import Placement
from sktune.backbone.skeleton import build_skeleton, read_config
from sktune.backbone.streaming import WeightStream
from sktune.errors import UserError
from sktune.sections import ModelSection, QuantizationSection


def check_read_one_by_one(backbone: Backbone, sees_text: bool) -> None:
    """Refuses a family of which a text, in front of the input, can only be read by all blocks at once.

    Raises:
        UserError: for such a family.
    """
    if sees_text and backbone.uses_cache_for_prefix:
        raise UserError(
            f"training.stream_frozen_blocks: a text in front of {backbone.family} is read by all blocks at once; "
            "set it to false"
        )


class OneByOne:
    """A model apart from the one that is trained, of which embeddings, norms and one block at most have weights.

    Args:
        like: the backbone that goes on above these blocks: its attention is used.
        model: the section it was loaded from.
        quantization: likewise.
        placement: whole to each rank; collective where there are several.
        sees_text: whether a text's keys and values are in front of an input's own.

    Raises:
        UserError: for weights that do not fit, and where a text cannot be read this way.
    """

    def __init__(
        self,
        like: Backbone,
        model: ModelSection,
        quantization: QuantizationSection,
        placement: Placement,
        sees_text: bool,
    ) -> None:
        attention = like.attn_implementation
        network = build_skeleton(
            model, quantization, read_config(model), language_model=False, attn_implementation=attention
        )
        self.backbone = Backbone(network, attn_implementation=attention, visible_prefix=like.visible_prefix)
        check_read_one_by_one(self.backbone, sees_text)
        if sees_text:
            self.backbone.use_prefix_attention("stream_frozen_blocks")
        self.device = placement.device
        self._weights = WeightStream(network, model, placement)
        self._weights.fill(beside_the_blocks(self.backbone))
        self._names = {id(part): name for name, part in network.named_modules()}

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """Inside, this block has weights."""
        modules = [(self._names[id(part)], part) for part in self.backbone.blocks[number].modules()]
        empty = [(part, name, tensor) for _, part in modules for name, tensor in _tensors(part) if tensor.is_meta]
        self._weights.fill(modules)
        try:
            yield
        finally:
            for part, name, tensor in empty:
                setattr(part, name, tensor)
            give_back_freed_memory()

    def read(
        self,
        number: int,
        ids: torch.Tensor,
        mask: torch.Tensor,
        states: torch.Tensor | None,
        prefix: Prefix | None = None,
        record: Record | None = None,
        segments: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """States [B, L, d] of a batch after a block that has weights now; all on the device.

        Args:
            number: of the block.
            ids: [B, L] int64, right-padded.
            mask: [B, L], 1 for real tokens.
            states: [B, L, d] after the block below; None for block 0.
            prefix: the text's keys and values in this block (`read_text`).
            record: filled with the keys and values of the batch.
            segments: [B, L], an encoder's `token_type_ids`.
        """
        embeds = self.backbone.embed(ids) if states is None else self.backbone.unread(states)
        types = {} if segments is None else {"token_type_ids": segments}
        return read_block(self.backbone, number, embeds, mask, states, prefix, record, **types)

    def read_text(self, number: int, ids: torch.Tensor, states: torch.Tensor | None) -> tuple[torch.Tensor, Prefix]:
        """A text's states [1, P, d] after a block, and its keys and values in it."""
        record: Record = []
        after = self.read(number, ids, torch.ones_like(ids), states, record=record)
        return after, [(self._names[id(part)], key_values) for part, key_values in record]


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
