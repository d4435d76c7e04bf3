"""How far a long piece of work has come: a bar on a terminal, elsewhere a log line from time to time.

Both are INFO messages of this module's logger: where that is silent (on all ranks but the first, in a program that has
not asked for messages) nothing is shown.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from rich import filesize
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

logger = logging.getLogger(__name__)

UNMENTIONED_SECONDS = 2.0
"""Work that is done sooner gets no line."""
SILENT_SECONDS = 30.0
"""Longest time without a line, however slow the work is."""


@contextmanager
def progress(
    label: str, total: int | None, unit: str, *, done: int = 0, shown: bool = True, tenths: bool = True
) -> Iterator[Callable[[int], None]]:
    """Shows how far the work inside has come.

    Without a terminal that is a line at each tenth (at most one a second), one after 30 seconds without any, and one
    at the end; nothing at all for what takes less than 2 seconds. Of works inside each other a terminal shows all, the
    log the innermost one.

    Args:
        label: what is done, like "loading weights".
        total: the amount there is to do; None: not known.
        unit: of the amount: `B` for bytes, otherwise a plural, like "steps".
        done: the amount that an earlier process has done.
        shown: False shows nothing.
        tenths: False for work that logs lines of its own: a line every 30 seconds only.

    Yields:
        A function to be told of each further amount that is done.
    """
    if not shown or not logger.isEnabledFor(logging.INFO):
        yield lambda amount: None
        return
    work = _Work(label, total, unit, done, tenths)
    _open(work)
    try:
        yield work.advance
    finally:
        _close(work)
    if tenths and work.seconds >= UNMENTIONED_SECONDS:
        logger.info("%s: %s", label, work.summary())


@dataclass(eq=False)
class _Work:
    label: str
    total: int | None
    unit: str
    before: int
    tenths: bool
    now: int = field(init=False)
    told: int = field(init=False)
    """The last tenth that a line was about."""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.now = self.before
        self.told = self.tenth

    def advance(self, amount: int) -> None:
        self.now += amount

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def tenth(self) -> int:
        return 10 * self.now // self.total if self.total else 0

    def standing(self) -> str:
        """Amount, rate and remaining time."""
        rate = (self.now - self.before) / max(self.seconds, 1e-9)
        text = self._amount(self.now)
        if self.total:
            text = self._amount(self.now, self.unit == "B") + f" of {self._amount(self.total)}"
            text += f" ({self.now / self.total:.0%})"
        if rate:
            text += f", {self._rate(rate)}"
            if self.total:
                text += f", {_clock(max(self.total - self.now, 0) / rate)} left"
        return text

    def summary(self) -> str:
        """Amount, time and rate, at the end."""
        amount, seconds = self.now - self.before, self.seconds
        return f"{self._amount(amount)} in {_clock(seconds)}, {self._rate(amount / seconds)}"

    def _amount(self, amount: int, with_unit: bool = True) -> str:
        if self.unit == "B":
            return filesize.decimal(amount)
        return f"{amount:,} {self.unit}" if with_unit else f"{amount:,}"

    def _rate(self, rate: float) -> str:
        if self.unit == "B":
            return f"{filesize.decimal(int(rate))}/s"
        return (f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}") + f" {self.unit}/s"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _Display(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


_works: list[_Work] = []
"""What is being done, the innermost last."""
_display: _Display | None = None


def _open(work: _Work) -> None:
    global _display
    _works.append(work)
    if _display is None:
        _display = _Bars() if sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal else _Lines()
        _display.start()


def _close(work: _Work) -> None:
    global _display
    if _works == [work] and _display is not None:
        _display.stop()
        _display = None
    _works.remove(work)


class _Lines:
    """Log lines, by a thread of its own: the work may be inside one call for minutes."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        last_line = time.monotonic()
        while not self._closed.wait(1.0):
            work = _works[-1]
            if work.seconds < UNMENTIONED_SECONDS:
                continue
            silent = time.monotonic() - last_line > SILENT_SECONDS - 1
            if silent or (work.tenths and work.tenth > work.told):
                logger.info("%s: %s", work.label, work.standing())
                work.told, last_line = work.tenth, time.monotonic()


class _Bars:
    """A row with a bar for each work, at the bottom of the terminal; whatever else is written goes above them."""

    def __init__(self) -> None:
        # Lines are broken by the terminal, so that they can be copied whole.
        console = _ConsoleWithCursor(
            stderr=True, force_terminal=True, soft_wrap=True, markup=False, highlight=False, emoji=False
        )
        # Where standard output is a file, what is printed must still go there.
        redirect_stdout = sys.stdout.isatty()
        self._live = Live(console=console, get_renderable=_rows, transient=True, redirect_stdout=redirect_stdout)

    def start(self) -> None:
        before = sys.stdout, sys.stderr
        self._live.start(refresh=True)
        self._replaced = [
            (old, new) for old, new in zip(before, (sys.stdout, sys.stderr), strict=True) if old is not new
        ]
        for old, new in self._replaced:
            _switch_handlers(old, new)

    def stop(self) -> None:
        self._live.stop()
        for old, new in self._replaced:
            _switch_handlers(new, old)


class _ConsoleWithCursor(Console):
    """Leaves the cursor alone: a process that is killed could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def _rows() -> Table:
    table = Table.grid("", "", Column(no_wrap=True), padding=(0, 1))
    for work in list(_works):
        bar = ProgressBar(work.total or None, work.now, width=20, pulse=not work.total)
        table.add_row(work.label, bar, work.standing())
    return table


def _switch_handlers(old: Any, new: Any) -> None:
    # Handlers keep the stream that they were made with.
    for other in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(other, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)
