"""A prefix as a read-only cache, for architectures that do not use the attention interface (Bloom, Falcon)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from sktune.backbone.attention import LayerKeyValues


class _PrefixLayer(DynamicLayer):
    """Puts its keys and values in front of the new ones and stores nothing, so a pass can be recomputed."""

    def __init__(self, key_values: LayerKeyValues, batch_size: int) -> None:
        super().__init__()
        self.keys = key_values.key.expand(batch_size, -1, -1, -1)
        self.values = key_values.value.expand(batch_size, -1, -1, -1)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        keys = torch.cat((self.keys.to(key_states.dtype), key_states), dim=-2)
        return keys, torch.cat((self.values.to(value_states.dtype), value_states), dim=-2)


class PrefixCache(Cache):
    """The prefix of every layer; batch rows share it."""

    def __init__(self, prefix: Sequence[LayerKeyValues], batch_size: int) -> None:
        super().__init__(layers=[_PrefixLayer(key_values, batch_size) for key_values in prefix])
