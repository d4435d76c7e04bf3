"""The C library's allocator, told to give memory back. Tensors in the CPU's memory come from it; elsewhere than glibc
nothing is done.
"""

from __future__ import annotations

import ctypes
import os

LARGE_BLOCK = 2**23
"""Activations of small models stay below: to take them anew from the system each time cost a quarter of a step."""
_M_MMAP_THRESHOLD = -3  # malloc.h


def give_back_freed_memory() -> None:
    """Returns pages that hold nothing to the system: blocks freed between others that stay are kept otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_large_blocks_at_once() -> None:
    """From now on a block of 8 MB or more goes back to the system when it is freed, unless the environment says else.

    By itself glibc raises that limit to 32 MB as blocks are freed. The layers that ZeRO-3 gathers then leave holes
    between the small blocks that stay, which the next ones do not fill: a rank with 0.56 GB of tensors grew to 3.6 GB
    (`docs/sharding.md`).
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        change(_M_MMAP_THRESHOLD, LARGE_BLOCK)
