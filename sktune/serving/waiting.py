"""Questions that wait for the model: a bounded queue, and the one thread that reads with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from sktune.errors import UserError
from sktune.serving.adapters import Shelf
from sktune.serving.reading import Item, kind, read

logger = logging.getLogger(__name__)

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Future[Any]"]


class Full(Exception):
    """More texts wait than are allowed."""


class Gone(Exception):
    """The adapter was removed before a text's turn came."""


class NotAnswered(Exception):
    """Reading a text failed in a way that nobody expected; the log says how."""


class Reader(threading.Thread):
    """Reads what waits, the oldest first, and with it whatever else waits that can be read in the same pass.

    So batches grow by themselves while the model is busy, and a text that comes alone is read at once. A job (an
    adapter that is added or removed) is done when all that came before it was read.

    Args:
        shelf: the adapters.
        most_waiting: texts that may wait, besides those that are being read.
        most_rows: rows of a batch; a single text may have more.
        read: called after each batch with its items and the seconds that it took.
    """

    def __init__(
        self, shelf: Shelf, most_waiting: int, most_rows: int, read: Callable[[Sequence[Item], float], None]
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self._shelf, self._most_waiting, self._most_rows, self._read = shelf, most_waiting, most_rows, read
        self._waiting: deque[Item | Job] = deque()
        self._changed = threading.Condition()
        self._ends = False

    @property
    def waiting(self) -> int:
        """How many texts (and jobs) wait."""
        return len(self._waiting)

    def ask(self, items: Sequence[Item]) -> None:
        """Lets items wait together; their answers come as results of `Item.answer`.

        Raises:
            Full: none of them waits then.
        """
        with self._changed:
            if len(self._waiting) + len(items) > self._most_waiting:
                raise Full
            self._waiting.extend(items)
            self._changed.notify()

    def do(self, job: Callable[[], T]) -> Future[T]:
        """Lets a job wait for its turn, however many texts wait; its result, or what it raises."""
        done: Future[T] = Future()
        with self._changed:
            self._waiting.append((job, done))
            self._changed.notify()
        return done

    def stop(self) -> None:
        """Lets the thread end when nothing waits any more."""
        with self._changed:
            self._ends = True
            self._changed.notify()

    def run(self) -> None:
        while (batch := self._next()) is not None:
            if not isinstance(batch, list):
                _do(*batch)
                continue
            # Who asked may be gone.
            wanted = [item for item in batch if item.answer.set_running_or_notify_cancel()]
            started = time.perf_counter()
            self._answer([item for item in wanted if not self._is_gone(item)])
            self._read(wanted, time.perf_counter() - started)

    def _is_gone(self, item: Item) -> bool:
        """Whether its adapter is: adapters change in this thread alone."""
        if self._shelf.get(item.served.name) is item.served:
            return False
        item.answer.set_exception(Gone(f"the adapter {item.served.name!r} was removed"))
        return True

    def _next(self) -> list[Item] | Job | None:
        """A job, or items of one kind; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._ends:
                    return None
                self._changed.wait()
            first = self._waiting.popleft()
            if not isinstance(first, Item):
                return first
            batch, rows, passed = [first], len(first.rows), deque[Item | Job]()
            wanted = kind(first)
            while self._waiting and rows < self._most_rows:
                other = self._waiting.popleft()
                if not isinstance(other, Item):
                    # What came behind it may be of an adapter that the job is about to add.
                    self._waiting.appendleft(other)
                    break
                if rows + len(other.rows) <= self._most_rows and kind(other) == wanted:
                    batch.append(other)
                    rows += len(other.rows)
                else:
                    passed.append(other)
            self._waiting.extendleft(reversed(passed))
            return batch

    def _answer(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            answers = read(self._shelf, batch)
        except Exception as error:
            if len(batch) == 1:
                (item,) = batch
                if isinstance(error, UserError):
                    item.answer.set_exception(error)
                else:
                    logger.error("a text for %s was not answered", item.served.name, exc_info=error)
                    item.answer.set_exception(NotAnswered())
                return
            for item in batch:  # one of them may be all that is wrong
                self._answer([item])
            return
        for item, found in zip(batch, answers, strict=True):
            item.answer.set_result(found)


def _do(job: Callable[[], Any], done: Future[Any]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(result)
