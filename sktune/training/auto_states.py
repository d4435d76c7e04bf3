"""What `training.frozen_states: auto` is: whether states are kept, and where there is room for them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
from rich import filesize

from sktune.distributed.node import Node
from sktune.training.setup import Setup
from sktune.training.state_files import SHARED_MEMORY

OF_FREE_MEMORY = 4
"""`auto` keeps states in memory where they take at most this part of what is free: a quarter."""
LEAST_SHARE = 4
"""`auto` keeps states where at least this part of the blocks is frozen: a quarter."""
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""


def why_not(setup: Setup, epochs: float, shared: bool) -> str | None:
    """Why `auto` keeps no states, whatever room there is; `shared`: with the other cells of a comparison."""
    training, count = setup.recipe.training, setup.model.frozen_blocks
    if count == 0:
        return "the method changes what every block reads"
    if training.stream_frozen_blocks or training.frozen_states_dir is not None:
        return None
    if count * LEAST_SHARE < len(setup.model.backbone.blocks):
        return f"the method changes what all but {count} blocks read"
    if epochs < 1 or (epochs == 1 and not shared):
        return "no example is read twice"
    return None


def choose_place(
    nbytes: int, missing: int, folder: Path, node: Node, shared: bool
) -> tuple[Literal["memory", "disk", "off"], str]:
    """Where `auto` keeps states of so many bytes, and why; the same on all ranks, collective.

    Args:
        nbytes: of all states.
        missing: those that are not in the folder yet.
        folder: on each machine's disk.
        node: this machine.
        shared: the folder is for other runs too.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = min(node.ranks.gather(_free_memory(node.size > 1)))
    on_disk = min(node.ranks.gather(shutil.disk_usage(there).free - missing))
    size = filesize.decimal(nbytes)
    if nbytes * OF_FREE_MEMORY <= free and not shared:
        return "memory", f"{size} of {filesize.decimal(free)} that are free"
    if on_disk < 0:
        return "off", f"{filesize.decimal(-on_disk)} more than are free in {folder} would be needed"
    if shared:
        return "disk", f"other runs can use what is kept in {folder}"
    return "disk", f"{size} would be much of the {filesize.decimal(free)} of memory that are free"


def _free_memory(several_ranks: bool) -> int:
    """Bytes that this machine, or the container's limit, leaves; of shared memory, where ranks have to share."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no limit
        limit, used = (int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return min(free, shutil.disk_usage(SHARED_MEMORY).free) if several_ranks else free
