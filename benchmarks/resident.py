"""Resident memory of processes: what is their own (anonymous), and pages of files that they have mapped."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import psutil


def memory_of(process: int | str) -> dict[str, int]:
    """Bytes of a process, by the kernel's count: `resident`, of it `anonymous` and `file`.

    Raises:
        OSError: where it has ended.
    """
    numbers: dict[str, int] = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        name, size, *_ = line.split()
        numbers[name] = 1024 * int(size)
    resident, anonymous = numbers["Rss:"], numbers["Anonymous:"]
    return {"resident": resident, "anonymous": anonymous, "file": resident - anonymous}


def own_memory() -> dict[str, int]:
    """Of this process."""
    return memory_of("self")


class Watch:
    """Peaks and the last numbers of every rank below a process, read once a second until `stop`."""

    def __init__(self, top: int, interval: float = 1.0) -> None:
        self.peaks: dict[int, dict[str, int]] = {}
        self.last: dict[int, dict[str, int]] = {}
        self._top, self._interval = top, interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """The numbers, by rank."""
        self._stopped.set()
        self._thread.join()
        return {"peak": self.peaks, "last": self.last}

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            with contextlib.suppress(psutil.Error):
                for rank, process in ranks_below(self._top).items():
                    with contextlib.suppress(OSError):  # it has ended
                        self.last[rank] = memory_of(process.pid)
                        peak = self.peaks.setdefault(rank, dict(self.last[rank]))
                        peak.update({name: max(peak[name], size) for name, size in self.last[rank].items()})


def family(top: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(top)
        return [process, *process.children(recursive=True)]
    return []


def ranks_below(top: int) -> dict[int, psutil.Process]:
    """Rank -> process, of those that train."""
    found = {}
    for process in family(top):
        with contextlib.suppress(psutil.Error):
            # deepspeed's own launcher names the script too, but has no rank.
            if "RANK" in process.environ() and any(part.endswith("train.py") for part in process.cmdline()):
                found[int(process.environ()["RANK"])] = process
    return found
