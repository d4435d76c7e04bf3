"""The files of an output folder: their names, writing them whole, and keeping two commands out of one folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sktune.errors import UserError

logger = logging.getLogger(__name__)

# Of a run.
RECIPE_FILE = "recipe.yaml"
SUMMARY_FILE = "summary.json"
DEEPSPEED_FILE = "deepspeed.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
ADAPTER_FOLDER = "adapter"
PREDICTIONS_FOLDER = "predictions"
FIGURES_FOLDER = "figures"
EVALUATION_FOLDER = "evaluation"
TEST_PREDICTIONS_FILE = "test.jsonl"
F1_FIGURE_FILE = "test_f1_by_type.png"
CONFUSION_FIGURE_FILE = "test_confusion.png"
TRACKING_FOLDER = "tracking"
TRACKING_STATE_FILE = f"{TRACKING_FOLDER}/run.json"
TRACKING_RECIPE_FILE = f"{TRACKING_FOLDER}/recipe.yaml"
FROZEN_STATES_FOLDER = "frozen_states"
FROZEN_STATES = tuple(f"{FROZEN_STATES_FOLDER}/{split}-*" for split in ("train", "validation", "test", "text"))
MODEL_FOLDER = "mlflow_model"

# Of an adapter's folder, which holds RECIPE_FILE too, and of a checkpoint's.
ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_CARD = "adapter.json"
ADAPTER_README = "README.md"
OPTIMIZER_WEIGHTS = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"

# Of a comparison; the folder of each of its cells is a run's.
COMPARISON_FILE = "comparison.json"
CELLS_FOLDER = "cells"
REPORT_FOLDER = "report"
REPORT_MARKDOWN, REPORT_CSV, REPORT_JSON = "report.md", "report.csv", "report.json"
ERROR_FILE = "error.txt"

LOCK_FILE = ".lock"
RUN_MARK = ".sktune-run"
"""Left in a folder that a run has claimed: the files of a run that lie there are sktune's to replace."""


LARGEST_JSON = 2**24
"""Bytes of a JSON file that is read from an output folder: a card with a million labels has less."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run has written.

    Raises:
        UserError: naming the file and the reason, where it cannot be read, is no JSON object, or is larger or deeper
            than anything that sktune writes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > LARGEST_JSON:
        raise UserError(f"{path}: is larger than {LARGEST_JSON:,} bytes, so sktune has not written it")
    try:
        content = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise UserError(f"{path}: is no JSON that sktune has written (brackets inside each other)") from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise UserError(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object")
    return content


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces `path` at the end: a kill leaves the old file or the new one.

    Makes the folder where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".writing")
    try:
        yield partial
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole, as UTF-8; see `whole`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps an output folder to this process, and makes it where it is missing.

    The lock is the kernel's (`flock`), so it is gone when the process is, however that ended. NFS passes it on to other
    machines, unless it is mounted with `nolock` or `local_lock`; a file system that has no locks gets a warning.

    Raises:
        UserError: another process has the folder; with its id, host and start.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"output.dir: {place} is a file, and a folder is needed there; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
        start = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}))
    except Timeout:
        raise UserError(
            f"output.dir: {folder} is in use by {_holder(path)}; wait for it or stop it, or use another folder"
        ) from None
    except (OSError, NotImplementedError) as error:  # by the version of filelock
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("%s: its file system has no locks; a second run in this folder would not be noticed", folder)
    try:
        yield
    finally:
        with suppress(OSError):
            if [file.name for file in folder.iterdir()] == [LOCK_FILE]:  # whatever wanted the folder was refused
                path.unlink()
                folder.rmdir()
        lock.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, started {holder['start']}"
    except (OSError, ValueError, TypeError, KeyError):  # it has the lock and has not written yet
        return "another process"
