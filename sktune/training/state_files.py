"""Frozen states on a node's disk or in its memory: one flat array for all ranks of the node, mapped by each of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from sktune.distributed.node import Node
from sktune.files import write_whole
from sktune.training.filling import Filling

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
"""Linux keeps files of this folder in memory."""


Fill = Callable[[torch.Tensor, Filling | None], None]


class StateFile:
    """An array [tokens, width] that a rank's machine keeps under a name that says what is in it.

    Args:
        folder: None: in memory.
        name: of the split, and the digest of all that its numbers depend on but for the block.
        block: how many blocks the states come after.
        shape: tokens, width.
        dtype: of the numbers.
        node: the ranks that share it.
    """

    def __init__(
        self, folder: Path | None, name: str, block: int, shape: tuple[int, int], dtype: torch.dtype, node: Node
    ) -> None:
        self.name, self.block, self.shape, self.dtype, self.node = name, block, shape, dtype, node
        self.kept = folder is not None
        self._folder = SHARED_MEMORY if folder is None else folder
        # Machines that see one disk have a file each all the same: a mapped file is not shared over a network.
        self._ending = f"{f'-node{node.number}' if node.number else ''}.states"
        self.path = self._folder / f"{name}-after{block}{self._ending}"
        self.nbytes = shape[0] * shape[1] * dtype.itemsize

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".json")

    def at(self, block: int) -> StateFile:
        """The same of another block."""
        return StateFile(self._folder if self.kept else None, self.name, block, self.shape, self.dtype, self.node)

    def blocks_below(self) -> set[int]:
        """Lower blocks whose states there are on this machine's disk."""
        if not self.kept:
            return set()
        files = self._folder.glob(f"{self.name}-after*{self._ending}")
        numbers = (path.name.removesuffix(self._ending).rpartition("-after")[2] for path in files)
        return {int(number) for number in numbers if number.isdecimal() and int(number) < self.block}

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
        logger.warning("%s: is damaged, and not used", self.path)
        return False

    @property
    def is_there(self) -> bool:
        """Whether this machine's disk has room for it taken already: it was made, or is being filled."""
        return self.kept and any(self.path.with_suffix(suffix).is_file() for suffix in (".states", ".partial"))

    def make(self, fill: Fill, goes_on: bool = True) -> torch.Tensor:
        """A new array, filled by all ranks of the machine together and kept whole; collective.

        Args:
            fill: takes the array, and the file while it is filled (None: in this process's memory).
            goes_on: on disk, what is filled when the run is stopped is used by the next one.

        Raises:
            UserError: where there is no room for it.
        """
        ranks, node = self.node.ranks, self.node
        if not self.kept and ranks.world_size == 1:
            alone = torch.empty(self.shape, dtype=self.dtype)
            fill(alone, None)
            return alone
        filling = Filling(self.path, self.nbytes, node, self.kept and goes_on)
        try:
            node.on_first(lambda: self._allocated(filling))
            states = self._mapped(filling.path)
            ranks.barrier()
            if not self.kept:  # mapped by all: the memory is given back when the last process ends, however it does
                node.on_first(lambda: _unlinked(filling.path))
            fill(states, filling)
            ranks.barrier()
            if self.kept:
                node.on_first(lambda: self._keep(filling))
            return states
        finally:
            filling.close()

    def _allocated(self, filling: Filling) -> str:
        cure = (
            "choose another training.frozen_states_dir, or frozen_states: memory or off"
            if self.kept
            else "give the container more shared memory (docker run --shm-size), or use frozen_states: disk"
        )
        problem = filling.allocate()
        return problem and f"training.frozen_states: {problem}; {cure}"

    def _keep(self, filling: Filling) -> str:
        digest = _sha256(filling.path)
        seal = {"sha256": digest, "tokens": self.shape[0], "width": self.shape[1], "dtype": str(self.dtype)}
        self._seal.unlink(missing_ok=True)
        filling.finish(self.path)
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

        def made(array: torch.Tensor, _: Filling | None) -> None:
            arrays[name] = array
            make_next()

        files[name].make(made, goes_on=False)  # a block's output takes the place of its input: no mark could say where

    make_next()
    return arrays


def _unlinked(path: Path) -> str:
    path.unlink()
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
