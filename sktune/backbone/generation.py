"""Texts of the tuned model, by transformers' own `generate`: each token reads the cache, not the text again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from sktune.backbone.frozen import Backbone
from sktune.backbone.prefix_cache import PrefixCache
from sktune.backbone.weaving import Woven
from sktune.errors import UserError

_OF_OURS = ("inputs", "inputs_embeds", "position_ids", "token_type_ids", "past_key_values")
"""Arguments of `generate` that say what the method already says."""
_OTHER_DECODING = ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "custom_generate")
"""Decoding that cuts or feeds the cache in a way of its own."""
_GROWING_CACHES = (None, "dynamic")
"""Kinds of cache that take in what a method puts in front; others have a fixed size or a form of their own."""


def generate(
    backbone: Backbone,
    woven: Woven,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> Any:
    """Continues texts.

    Args:
        backbone: with a causal language model.
        woven: what the method adds; what it puts in front is in no sequence that is returned.
        input_ids: [B, L] int64; a row holds one token at least.
        attention_mask: [B, L], 1 for real tokens, padding on either side; None: no padding.
        options: what transformers' `generate` takes: `max_new_tokens`, `do_sample`, `generation_config` ...

    Returns:
        What it returns: sequences [B, L + new] int64, padding moved to the left.

    Raises:
        UserError: for options that cannot be with what the method adds, rows without tokens, and texts that could
            become longer than the model reads.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not bool(mask.any(1).all()):
        raise UserError("generate: a row of input_ids has no tokens to go on from; give it one at least, such as a BOS")
    in_front = _length(woven)
    _refuse(backbone, options, in_front, mask)
    order = torch.argsort(mask != 0, dim=1, stable=True)
    placed = _InFront(backbone, woven)
    with backbone.weaving(woven):
        hook = backbone.model.register_forward_pre_hook(placed, with_kwargs=True) if in_front else None
        try:
            model: Any = backbone.model
            return model.generate(input_ids.gather(1, order), attention_mask=mask.gather(1, order), **options)
        finally:
            if hook is not None:
                hook.remove()


def _length(woven: Woven) -> int:
    """Positions in front of the input."""
    prompt = 0 if woven.prompt is None else woven.prompt.shape[1]
    return prompt + (woven.prefix[0][1].key.shape[2] if woven.prefix else 0)


def _refuse(backbone: Backbone, options: Mapping[str, Any], in_front: int, mask: torch.Tensor) -> None:
    config = options.get("generation_config") or getattr(backbone.model, "generation_config", None)

    def asked(name: str) -> Any:
        return options[name] if name in options else getattr(config, name, None)

    if given := [name for name in _OF_OURS if options.get(name) is not None]:
        raise UserError(f"generate: {', '.join(given)} cannot be given; give input_ids and attention_mask")
    if in_front:
        if other := [name for name in _OTHER_DECODING if asked(name) is not None]:
            raise UserError(f"generate: {', '.join(other)} cannot be used with a method that puts a text in front")
        if (kind := asked("cache_implementation")) not in _GROWING_CACHES:
            raise UserError(
                f"generate: cache_implementation {kind!r} has no room for what the method puts in front; allowed: "
                "dynamic, or leave it out"
            )
    if (new := asked("max_new_tokens")) is not None and backbone.max_positions is not None:
        longest = int(mask.sum(1).max()) + in_front
        if longest + new > backbone.max_positions:
            raise UserError(
                f"generate: {new} new tokens after {longest}, of which the method puts {in_front} in front, exceed the "
                f"{backbone.max_positions} positions of the model; allowed: max_new_tokens up to "
                f"{max(0, backbone.max_positions - longest)}"
            )


class _InFront:
    """A hook on the language model: gives each of its passes what the method puts in front, and the right positions."""

    def __init__(self, backbone: Backbone, woven: Woven) -> None:
        self.backbone, self.woven, self.length = backbone, woven, _length(woven)
        self.as_cache = bool(woven.prefix) and backbone.uses_cache_for_prefix

    def __call__(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Of a pass over tokens [B, n], padded on the left, with a cache of what came before or with none."""
        tokens, cache, prompt = kwargs["input_ids"], kwargs.get("past_key_values"), self.woven.prompt
        batch, new = tokens.shape
        read = 0 if cache is None or isinstance(cache, PrefixCache) else cache.get_seq_length()
        first = read == 0
        mask = kwargs.get("attention_mask")
        if mask is None:  # nothing is padded
            inside = self.length if prompt is not None or self.as_cache else 0
            mask = tokens.new_ones(batch, new + (0 if first else read - inside))
        positions = (mask.cumsum(1) - 1 + self.length)[:, -new:]
        if prompt is not None:
            # [padding][prompt][input]; the padding is the same for both.
            mask = F.pad(mask, (0, self.length), value=1)
            if first:
                kwargs["inputs_embeds"] = self._with_prompt(tokens, mask)
                kwargs["input_ids"] = None
                positions = mask.cumsum(1) - 1
        elif self.as_cache:
            mask = F.pad(mask, (self.length, 0), value=1)
            if first:
                kwargs["past_key_values"] = self._filled_cache(batch, growing=bool(kwargs.get("use_cache", True)))
                kwargs["use_cache"] = True
        kwargs["attention_mask"] = mask
        if self.backbone.takes_position_ids:
            kwargs["position_ids"] = positions.clamp(min=0)
        return args, kwargs

    def _with_prompt(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embeds = self.backbone.embed(tokens)
        assert self.woven.prompt is not None
        prompt = self.woven.prompt.to(embeds.dtype).expand(len(tokens), -1, -1)
        joined = torch.cat((prompt, embeds), dim=1)
        # Rows begin with the prompt; its padding, which stands behind it, comes first.
        padding = (mask == 0).sum(1)[:, None]
        places = torch.arange(joined.shape[1], device=tokens.device)[None]
        own = torch.where(places < padding, places + self.length, places - padding)
        own = torch.where(places >= padding + self.length, places, own)
        return joined.gather(1, own[..., None].expand_as(joined))

    def _filled_cache(self, batch: int, growing: bool) -> Any:
        assert self.woven.prefix is not None
        layers = [key_values for _, key_values in self.woven.prefix]
        if not growing:
            return PrefixCache(layers, batch)
        cache = DynamicCache()
        for number, (key, value) in enumerate(layers):
            shape = (batch, -1, -1, -1)
            cache.update(key.expand(shape).clone(), value.expand(shape).clone(), number)
        return cache
