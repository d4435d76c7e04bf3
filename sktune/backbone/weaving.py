"""One pass with what a method adds: put on the model's modules when the pass begins, taken off when it ends.

Outside a pass the model is its owner's: nothing of a method is on it, and several methods can take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sktune.backbone.attention import (
    GATED_ATTRIBUTE,
    IMPLEMENTATION_PREFIX,
    PREFIX_ATTRIBUTE,
    RECORD_ATTRIBUTE,
    GatedPrompt,
    LayerKeyValues,
)
from sktune.library_internals import ACTIVE_ADAPTER, DISABLED_LAYER, attention_of, set_attention


class Woven(NamedTuple):
    """What a method adds to every row of a batch; `Backbone.read` reads it. Modules are named as in the model."""

    prompt: torch.Tensor | None = None
    """[1, P, d], any float dtype: in front of the input's embeddings."""
    prefix: Sequence[tuple[str, LayerKeyValues]] | None = None
    """Of each attention module, keys and values in front of its own: [1, kv_heads, P, head_dim], rotated."""
    gated: Sequence[tuple[str, GatedPrompt]] | None = None
    """Prompts that attention modules read beside the input (LLaMA-Adapter)."""
    behind: Sequence[tuple[str, nn.Module]] | None = None
    """Modules that the outputs of the model's modules go through (bottleneck adapters)."""
    layers: Sequence[tuple[str, str]] | None = None
    """peft's layers inside the model, which add nothing outside a pass, and the adapter in each that is read."""


NOTHING = Woven()

_in_turn = threading.Lock()
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_routed: dict[int, tuple[int, str]] = {}


def _lock_of(model: nn.Module) -> Any:
    with _in_turn:
        return _locks.setdefault(model, threading.RLock())


@contextmanager
def routed_to(config: Any, implementation: str) -> Iterator[None]:
    """Inside, models of this configuration attend by another implementation."""
    # Replicas of one model share its configuration, so it is counted how many of their passes are under way.
    with _in_turn:
        count, before = _routed.get(id(config), (0, attention_of(config)))
        _routed[id(config)] = count + 1, before
        if count == 0:
            set_attention(config, implementation)
    try:
        yield
    finally:
        with _in_turn:
            count, before = _routed.pop(id(config))
            if count > 1:
                _routed[id(config)] = count - 1, before
            else:
                set_attention(config, before)


_ABSENT = object()


@contextmanager
def attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside, a module has this attribute, `forward` for example; then what it had before."""
    before = module.__dict__.get(name, _ABSENT)
    module.__dict__[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before


class Pass:
    """What is on a model's modules during one pass; entered again where a block is recomputed in backward.

    Args:
        model: the model that is read.
        woven: what the method adds; its prompt is not this class's concern, and its prefix only where it is read
            inside attention.
        implementation: the attention to route through the prefix-aware functions; None: left as it is.
        checkpointed: the blocks that are recomputed in backward.
        random: whether blocks draw random numbers.
        record: filled with (attention module, its keys and values).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        woven: Woven,
        *,
        implementation: str | None,
        checkpointed: Sequence[nn.Module] = (),
        random: bool = False,
        record: list[tuple[nn.Module, LayerKeyValues]] | None = None,
    ) -> None:
        self.model = model
        self.woven = woven
        self.implementation = implementation
        self.checkpointed = checkpointed
        self.random = random
        self.record = record
        self._depth = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model reads with what was woven; the modules are then as they were before."""
        if self._depth:  # a block that runs for the first time, not in backward
            yield
            return
        with _lock_of(self.model), ExitStack() as stack:
            self._depth += 1
            try:
                self._enter(stack)
                yield
            finally:
                self._depth -= 1

    def _enter(self, stack: ExitStack) -> None:
        if self.implementation is not None:
            configs = {id(m.config): m.config for m in self.model.modules() if isinstance(m, PreTrainedModel)}
            for config in configs.values():
                stack.enter_context(routed_to(config, IMPLEMENTATION_PREFIX + self.implementation))
        of = self.model.get_submodule
        for name, key_values in self.woven.prefix or ():
            stack.enter_context(attribute(of(name), PREFIX_ATTRIBUTE, key_values))
        for name, prompt in self.woven.gated or ():
            stack.enter_context(attribute(of(name), GATED_ATTRIBUTE, prompt))
        for name, adapter in self.woven.layers or ():
            stack.enter_context(attribute(of(name), DISABLED_LAYER, False))
            stack.enter_context(attribute(of(name), ACTIVE_ADAPTER, [adapter]))
        for name, module in self.woven.behind or ():
            handle = of(name).register_forward_hook(lambda _, inputs, output, behind=module: behind(output))
            stack.callback(handle.remove)
        if self.record is not None:
            for module in self.model.modules():
                stack.enter_context(attribute(module, RECORD_ATTRIBUTE, self.record))
        for block in self.checkpointed:
            stack.enter_context(attribute(block, "forward", self._checkpointed(block.forward)))

    def _checkpointed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        # transformers' own checkpointing runs only in training mode, which would switch dropout on, and it
        # takes caches away. `forward` is wrapped, not the call: hooks (ZeRO-3's gathering) stay outside.
        def again(*args: Any, **kwargs: Any) -> Any:
            with self.active():
                return forward(*args, **kwargs)

        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=self.random, **kwargs)

        return checkpointed
