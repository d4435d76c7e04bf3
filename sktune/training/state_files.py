"""Frozen states on a node's disk or in its memory: one flat array for all ranks of the node, mapped by each of them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import write_whole

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
"""Linux keeps files of this folder in memory."""


@dataclass(frozen=True)
class Node:
    """The ranks of a run that are on one machine.

    number: of the machine in the run.
    index: of this rank among those on its machine.
    size: how many those are.
    """

    number: int
    index: int
    size: int
    ranks: Ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank does what one rank of a machine has to do."""
        return self.index == 0

    def on_first(self, action: Callable[[], str]) -> None:
        """Lets the first rank of each machine do something that ends with a problem in words, or with none.

        Raises:
            UserError: on all ranks, where it was a problem on one machine.
        """
        problems = self.ranks.gather(action() if self.is_first else "")
        if found := next(filter(None, problems), ""):
            raise UserError(found)


def node_of(ranks: Ranks) -> Node:
    """This rank's machine; collective."""
    hosts = ranks.gather(socket.gethostname())
    here = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
    return Node(list(dict.fromkeys(hosts)).index(hosts[ranks.rank]), here.index(ranks.rank), len(here), ranks)


class StateFile:
    """An array [tokens, width] that a rank's machine keeps under a name that says what is in it.

    Args:
        folder: None: in memory.
        name: of the split, and the digest of all that its numbers depend on.
        shape: tokens, width.
        dtype: of the numbers.
        node: the ranks that share it.
    """

    def __init__(self, folder: Path | None, name: str, shape: tuple[int, int], dtype: torch.dtype, node: Node) -> None:
        self.shape, self.dtype, self.node = shape, dtype, node
        self.kept = folder is not None
        place = SHARED_MEMORY if folder is None else folder
        # Machines that see one disk have a file each all the same: a mapped file is not shared over a network.
        self.path = place / f"{name}{f'-node{node.number}' if node.number else ''}.states"
        self.nbytes = shape[0] * shape[1] * dtype.itemsize

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".json")

    def find(self) -> torch.Tensor | None:
        """What an earlier run has left, [tokens, width]; None where that is nothing, or damaged. Collective."""
        found = self.kept and self.node.is_first and self._is_whole()
        everywhere = all(found for found, first in self.node.ranks.gather((found, self.node.is_first)) if first)
        return self._mapped(self.path) if everywhere else None

    def _is_whole(self) -> bool:
        if not (self.path.is_file() and self._seal.is_file()):
            return False
        with suppress(OSError, ValueError, KeyError, TypeError):
            seal = json.loads(self._seal.read_text(encoding="utf-8"))
            if self.path.stat().st_size == self.nbytes and seal["sha256"] == _sha256(self.path):
                return True
        logger.warning("%s: is damaged, and made again", self.path)
        return False

    def make(self, fill: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """A new array, filled by all ranks of the machine together and kept whole; collective.

        Raises:
            UserError: where there is no room for it.
        """
        ranks, node = self.node.ranks, self.node
        if not self.kept and ranks.world_size == 1:
            alone = torch.empty(self.shape, dtype=self.dtype)
            fill(alone)
            return alone
        partial = self.path.with_suffix(f".{ranks.broadcast(uuid.uuid4().hex)}")
        try:
            node.on_first(lambda: self._make_room(partial))
            states = self._mapped(partial)
            ranks.barrier()
            if (
                not self.kept
            ):  # mapped by all: its memory is given back when the last process has ended, however it does
                node.on_first(lambda: _unlinked(partial))
            fill(states)
            ranks.barrier()
            if self.kept:
                node.on_first(lambda: self._keep(partial))
            return states
        finally:
            if node.is_first:
                partial.unlink(missing_ok=True)

    def _make_room(self, partial: Path) -> str:
        partial.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.parent).free
        if free < self.nbytes:
            where, cure = (
                (partial.parent, "choose another training.frozen_states_dir, or frozen_states: memory or off")
                if self.kept
                else ("shared memory", "give the container more (docker run --shm-size), or use frozen_states: disk")
            )
            return f"training.frozen_states: {self.nbytes:,} bytes are needed in {where}, {free:,} are free; {cure}"
        with partial.open("wb") as handle:
            handle.truncate(self.nbytes)
        return ""

    def _keep(self, partial: Path) -> str:
        seal = {"sha256": _sha256(partial), "tokens": self.shape[0], "width": self.shape[1], "dtype": str(self.dtype)}
        self._seal.unlink(missing_ok=True)
        partial.replace(self.path)
        write_whole(self._seal, json.dumps(seal))
        return ""

    def _mapped(self, path: Path) -> torch.Tensor:
        elements = self.shape[0] * self.shape[1]
        return torch.from_file(str(path), shared=True, size=elements, dtype=self.dtype).view(self.shape)


def make_together(
    files: Mapping[str, StateFile], fill: Callable[[Mapping[str, torch.Tensor]], None]
) -> dict[str, torch.Tensor]:
    """New arrays by name, filled by one call for all of them and kept whole; collective.

    Raises:
        UserError: where there is no room for one of them.
    """
    arrays: dict[str, torch.Tensor] = {}

    def make_next() -> None:
        name = next((name for name in files if name not in arrays), None)
        if name is None:
            fill(arrays)
            return

        def made(array: torch.Tensor) -> None:
            arrays[name] = array
            make_next()

        files[name].make(made)

    make_next()
    return arrays


def _unlinked(path: Path) -> str:
    path.unlink()
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
