"""How a command stops before its end: by Ctrl-C, SIGTERM, SIGHUP, or because its launcher is gone.

Where there is something to finish (a training step, a batch of an evaluation) a signal is noted only, and all ranks
stop together at the next point where they ask each other: each brings its `votes` into a sum over all ranks, and
`decide` raises `Stopped` on all of them. Elsewhere (while loading, tokenizing) a signal raises `Stopped` at once.

What launchers do. `deepspeed`: its first process passes nothing on, and leaves; its second answers SIGINT and SIGTERM
by SIGTERM to one rank after the other, and SIGKILL 30 s later. `torchrun`: passes the signal on to all ranks, and
SIGKILL 30 s later. So the ranks watch the launcher's processes themselves, and one rank's signal is enough for all.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sktune.distributed.ranks import Ranks

AGAIN_SECONDS = 1.0
"""A SIGINT that comes sooner after the first one is the same key press, passed on by a wrapper."""

_LAUNCHER = re.compile(r"(^|/)(deepspeed|ds|torchrun|accelerate)$|^deepspeed\.launcher\.|^torch\.distributed\.")


class Stopped(KeyboardInterrupt):
    """The command was told to stop; no `Exception`, so that nothing takes it for a failure.

    number: of the signal.
    together: whether all ranks raise it at the same point, where they can still do things together.
    advice: how to go on.
    """

    advice = ""

    def __init__(self, number: int, together: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.together = number, together

    @property
    def status(self) -> int:
        """The exit status that shells give a command that this signal ended."""
        return 128 + self.number


@dataclass
class _Request:
    """What this process has been told."""

    number: int = 0
    since: float = 0.0
    raised: bool = False
    deferrals: int = 0
    watching: bool = False


_request = _Request()


@contextmanager
def listening() -> Iterator[None]:
    """Takes SIGINT, SIGTERM, SIGHUP (unless ignored: `nohup`) and the launcher's end as requests to stop."""
    global _request
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request = _Request(watching=True)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _note) for number in numbers}
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_watch, args=(_launchers(), _request), daemon=True).start()
    try:
        yield
    finally:
        _request.watching = False
        for number, handler in before.items():
            signal.signal(number, handler)
        _request = _Request()  # what this command was told is no business of the next one in this process


def requested() -> int:
    """The signal that has told this process to stop, or 0."""
    return _request.number


@contextmanager
def deferred(late: bool = True) -> Iterator[None]:
    """Inside, a signal is noted and does not interrupt; only a second SIGINT does.

    Args:
        late: at the end, raise `Stopped` for a signal that came too late for the last `decide`.
    """
    _request.deferrals += 1
    try:
        yield
    finally:
        _request.deferrals -= 1
    if late and _request.number and not _request.deferrals and not _request.raised:
        _stop(_request.number)


def votes() -> list[float]:
    """What this rank brings into a sum over all ranks, whose result goes to `decide`."""
    return [float(_request.number == signal.SIGINT), float(_request.number not in (0, signal.SIGINT))]


def decide(totals: Sequence[float]) -> None:
    """Raises `Stopped` on all ranks where the sum of their votes says that one was told to stop."""
    interrupted, others = totals
    if interrupted or others:
        _stop(signal.SIGINT if interrupted else _request.number or signal.SIGTERM, together=True)


def agree(ranks: Ranks) -> None:
    """Votes and decides, where no other sum over the ranks is at hand; collective."""
    decide(ranks.sum(votes()))


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Gives a `Stopped` that passes the sentence that says how to go on."""
    try:
        yield
    except Stopped as stop:
        stop.advice = advice
        raise


def _stop(number: int, together: bool = False) -> None:
    _request.number, _request.raised = number, True
    raise Stopped(number, together)


def _note(number: int, _: Any) -> None:
    """The signal handler; it runs in the main thread, between two bytecodes."""
    now = time.monotonic()
    if not _request.number:
        _request.number, _request.since = number, now
        if _request.deferrals and number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # not through a Python stream, which the handler may have interrupted
                os.write(2, b"\nstopping when this step is done; Ctrl-C once more stops at once\n")
    elif number == signal.SIGINT and now - _request.since > AGAIN_SECONDS:
        signal.signal(number, signal.SIG_DFL)  # a third one kills
        _stop(number)
    if not (_request.deferrals or _request.raised):
        if sys.exc_info()[0] is None:
            _stop(_request.number)
        # Not into the handling of an error, which may be the end of a run that MLflow has to be told: in a moment.
        again = threading.Timer(0.1, _remind, [_request])
        again.daemon = True
        again.start()


def _remind(request: _Request) -> None:
    if request.watching:
        os.kill(os.getpid(), signal.SIGTERM)


def _launchers() -> list[int]:
    """Ids of the launcher's processes above this one, as far as they are on this machine."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            command = process.cmdline()
            is_python = bool(command) and Path(command[0]).name.startswith("python")
            if not (is_python and any(_LAUNCHER.search(part) for part in command[1:5])):
                break
            found.append(process.pid)
    return found


def _watch(launchers: Sequence[int], request: _Request) -> None:
    """Tells this process to stop when one of the launcher's ends; needs Linux 5.3."""
    ends = select.poll()
    try:
        for launcher in launchers:
            ends.register(os.pidfd_open(launcher), select.POLLIN)
    except ProcessLookupError:
        pass  # it has ended just now
    except (OSError, AttributeError):
        return
    else:
        if not launchers:
            return
        ends.poll()
    _remind(request)
