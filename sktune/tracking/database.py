"""A SQLite file of MLflow's: made once, whole, however many runs start on it at the same time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sktune.errors import UserError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""For another process that makes the tables; it takes seconds."""


@contextmanager
def made_once(database: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Keeps other starts away while a database is made where it is missing, and while it is opened.

    The tables are made in a file beside it, which then takes its name: a start that is killed meanwhile leaves no half
    of a database behind. The lock is the kernel's, so it is gone when the process is.

    Args:
        database: the file; its folder is made where missing.
        make: makes a whole database at the path that it is given.

    Raises:
        UserError: another process has been making it for five minutes.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(f"{database.name}.lock"), timeout=WAIT_SECONDS, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"tracking.tracking_uri: another process has kept {database} to itself for {WAIT_SECONDS:.0f} seconds; "
            "stop it, or name another file."
        ) from None
    except (NotImplementedError, OSError) as error:
        # No locks on this file system, or no right to make a file beside the database.
        logger.debug("%s: opened without a lock (%s)", database, error)
    try:
        if not database.exists():
            partial = database.with_name(f"{database.name}.making")
            partial.unlink(missing_ok=True)
            make(partial)
            os.replace(partial, database)
        yield
    finally:
        lock.release()
