"""Counts what is alive while tensors without contents go through a model: nothing is allocated, every byte is seen."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_DEQUANTIZES_INSIDE = "bitsandbytes::gemm_4bit"


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations returned and that something still holds; works on real tensors too.

    Args:
        known: tensors whose storages do not count (parameters and buffers, which have a share of their own).
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self._peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and args[0].device.type != "meta" and _is_fake(args[0]):
            # How many are set depends on contents; a plan counts all of them.
            result = torch.empty((args[0].numel(), args[0].ndim), dtype=torch.long)
        else:
            result = func(*args, **(kwargs or {}))
        if func._schema.name == _DEQUANTIZES_INSIDE:
            self._note(math.prod(args[2]) * args[0].element_size())
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known or address in self._alive:
            return

        def died(_: object) -> None:
            del self._alive[address]
            self.live -= size

        self._alive[address] = weakref.ref(storage, died)
        self.live += size
        self._note(0)

    def _note(self, transient: int) -> None:
        self._peak = max(self._peak, self.live + transient)

    def take_peak(self) -> int:
        """The most bytes alive since the last call."""
        peak, self._peak = max(self._peak, self.live), self.live
        return peak


def _is_fake(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "FakeTensor"
