"""An array's file while it is filled, by all ranks of a machine: its room, its lock, and a note of how far it is."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from sktune.distributed.node import Node
from sktune.files import write_whole

SECONDS_BETWEEN_NOTES = 10.0
"""At least so much of a pass lies between two notes."""


class Filling:
    """The file under another name than that of the finished one; collective.

    Args:
        path: of the finished file.
        nbytes: its size.
        node: the ranks that fill it.
        goes_on: what is filled when the run is stopped or killed is used by the next one. The file is then locked;
            where another run holds it, or the file system has no locks, this one fills a file of its own.
    """

    def __init__(self, path: Path, nbytes: int, node: Node, goes_on: bool) -> None:
        self.nbytes, self.node = nbytes, node
        self._lock = _locked(path.with_suffix(".lock")) if goes_on and node.is_first else None
        own = path.with_suffix(".partial" if self._lock is not None else f".{uuid.uuid4().hex}")
        of_machines = node.ranks.gather((node.number, own) if node.is_first else None)
        self.path = dict(filter(None, of_machines))[node.number]
        goes_on = self.path.suffix == ".partial"
        self._notes = self.path.with_suffix(".mark") if goes_on else None
        self._noted = time.monotonic()

    def allocate(self) -> str:
        """Makes the file, unless an earlier run has begun to fill it; a problem in words where that cannot be done."""
        begun = self._notes is not None and self._notes.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._notes is not None and not (begun and self.path.is_file()):
                self._notes.unlink(missing_ok=True)
                begun = False
            with self.path.open("ab" if begun else "wb") as handle:
                missing, free = self.nbytes - handle.tell(), shutil.disk_usage(self.path.parent).free
                if missing > free:
                    return f"{missing:,} bytes are needed in {self.path.parent}, {free:,} are free"
                # Not a sparse file: writing to a mapped one ends the process where the disk is full.
                os.posix_fallocate(handle.fileno(), 0, self.nbytes)
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        return ""

    def batches_done(self, of: int) -> int:
        """How many of a rank's batches need not be read again, on all ranks alike; collective."""
        done, node = 0, self.node
        if self._notes is not None and node.is_first:
            with suppress(OSError, ValueError, KeyError, TypeError):
                noted = json.loads(self._notes.read_text(encoding="utf-8"))
                done = int(noted["done"]) if (noted["of"], noted["ranks"]) == (of, node.size) else 0
        return min(done for done, first in node.ranks.gather((done, node.is_first)) if first)

    def note(self, done: int, of: int) -> None:
        """Tells that all ranks of the machine have filled in their first `done` batches; now and then it is noted."""
        if self._notes is None or not self.node.is_first or time.monotonic() - self._noted < SECONDS_BETWEEN_NOTES:
            return
        with self.path.open("rb") as handle:
            os.fsync(handle.fileno())  # what other ranks wrote to the mapped file too
        write_whole(self._notes, json.dumps({"done": done, "of": of, "ranks": self.node.size}))
        self._noted = time.monotonic()

    def finish(self, path: Path) -> None:
        """Gives the file its name."""
        if self._notes is not None:
            self._notes.unlink(missing_ok=True)
        self.path.replace(path)

    def close(self) -> None:
        """Removes the file, unless it is finished or the next run can go on with it, and gives the lock back."""
        if self.node.is_first and not (self._notes is not None and self._notes.exists()):
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


def _locked(path: Path) -> FileLock | None:
    """A lock that is held; None where another run holds it, or where there can be none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        lock.acquire()
    except (OSError, NotImplementedError):  # filelock's Timeout is an OSError
        return None
    return lock
