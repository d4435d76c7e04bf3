"""A prefix inside attention: keys and values of a text put in front of a layer's own.

Registered with `transformers.AttentionInterface`, so one implementation serves every architecture that uses
that interface, with and without gradient checkpointing, for left- and right-padded batches (design fact 8).
The prefix is visible from every position, also where the model slides a window over the input itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from sktune.library_internals import Kernel, attention_function, mask_function

IMPLEMENTATION_PREFIX = "sktune_"
PREFIX_ATTRIBUTE = "_sktune_prefix"
"""Where an attention module finds the prefix of a pass, a `LayerKeyValues`."""
GATED_ATTRIBUTE = "_sktune_gated_prompt"
"""Where it finds the prompt it reads beside the input, a `GatedPrompt`."""
RECORD_ATTRIBUTE = "_sktune_record"
"""Where it finds the list that its keys and values are written into."""


class LayerKeyValues(NamedTuple):
    """What one attention layer made of a text: key and value, each [batch, kv_heads, positions, head_dim]."""

    key: torch.Tensor
    value: torch.Tensor


class GatedPrompt(NamedTuple):
    """A prompt that a layer attends to beside its input; key and value [positions, kv_heads * head_dim]."""

    key: torch.Tensor
    value: torch.Tensor
    gate: torch.Tensor
    """[heads]: how much of it is added."""


def _attend_to_gated(query: torch.Tensor, prompt: GatedPrompt, scale: float) -> torch.Tensor:
    """Query [B, heads, L, head_dim] -> what it reads in the prompt, [B, L, heads, head_dim]."""
    head_dim = query.shape[-1]
    # No softmax is shared with the input, so a closed gate leaves the layer exactly as it was.
    key, value = (
        states.unflatten(-1, (-1, head_dim))
        .transpose(0, 1)
        .repeat_interleave(query.shape[1] * head_dim // states.shape[-1], dim=0)
        for states in (prompt.key, prompt.value)
    )
    weights = (query @ key.transpose(1, 2) * scale).softmax(-1, dtype=torch.float32)
    read = (weights * prompt.gate[:, None, None]).to(value.dtype) @ value
    return read.transpose(1, 2)


def _widen(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask with `length` always-visible columns in front."""
    if mask is None:
        return None
    if torch.compiler.is_compiling():
        return _widened(mask, length)
    # One copy per mask, not one per layer.
    cache: dict[int, torch.Tensor] = mask.__dict__.setdefault("_sktune_widened", {})
    if length not in cache:
        cache[length] = _widened(mask, length)
    return cache[length]


def _widened(mask: torch.Tensor, length: int) -> torch.Tensor:
    visible = True if mask.dtype == torch.bool else (1 if not mask.is_floating_point() else 0.0)
    return F.pad(mask, (length, 0), value=visible)


def _attend(kind: Kernel) -> Callable[..., Any]:
    inner = attention_function(kind)

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        record: list[tuple[nn.Module, LayerKeyValues]] | None = module.__dict__.get(RECORD_ATTRIBUTE)
        if record is not None:
            record.append((module, LayerKeyValues(key, value)))
        prefix: LayerKeyValues | None = module.__dict__.get(PREFIX_ATTRIBUTE)
        if prefix is not None:
            batch = key.shape[0]
            key = torch.cat((prefix.key.to(key.dtype).expand(batch, -1, -1, -1), key), dim=2)
            value = torch.cat((prefix.value.to(value.dtype).expand(batch, -1, -1, -1), value), dim=2)
            attention_mask = _widen(attention_mask, prefix.key.shape[2])
        output, weights = inner(module, query, key, value, attention_mask, **kwargs)
        gated: GatedPrompt | None = module.__dict__.get(GATED_ATTRIBUTE)
        if gated is not None:
            scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
            output = output + _attend_to_gated(query, gated, scale).to(output.dtype)
        return output, weights

    return attention


def register_prefix_attention() -> None:
    """Makes `sktune_eager`, `sktune_sdpa` and `sktune_flash_attention_2` known to transformers; repeatable."""
    for kind in get_args(Kernel):
        AttentionInterface.register(IMPLEMENTATION_PREFIX + kind, _attend(kind))
        AttentionMaskInterface.register(IMPLEMENTATION_PREFIX + kind, mask_function(kind))
