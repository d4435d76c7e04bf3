"""What the rest of sktune sees of tracking, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from sktune.tracking.record import DatasetEntry

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """One run's tracking; metrics carry their optimizer step."""

    @property
    def run_id(self) -> str | None:
        """Give it to `start_tracking` to continue the run; None on other ranks than the main one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values of one step."""

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Log what the runs table compares: numbers as metrics, the rest as params, under `final/`."""

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Attach a file or a folder, below `folder` in the run's artifacts."""

    def log_model(self, path: Path | str, step: int) -> None:
        """Hand over a folder that MLflow can load, with the scores of its weights, which are those after `step`."""

    def log_datasets(self, datasets: Sequence[DatasetEntry]) -> None:
        """Say what the run reads."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or change tags."""

    def finish(self, status: Status, message: str | None = None) -> None:
        """End the run; `message` (of the error) becomes the tag `error`."""


class NullTracker:
    """For ranks that do not track: does nothing."""

    run_id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_summary(self, summary: Mapping[str, Any]) -> None: ...

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None: ...

    def log_model(self, path: Path | str, step: int) -> None: ...

    def log_datasets(self, datasets: Sequence[DatasetEntry]) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def finish(self, status: Status, message: str | None = None) -> None: ...
