"""What the training loop talks to: a tracker that never stops a run and never loses a metric."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sktune.errors import UserError, hide_password
from sktune.files import METRICS_FILE
from sktune.tracking import names
from sktune.tracking.interface import Status
from sktune.tracking.record import RUNNING, DatasetEntry, Record, last_steps, now
from sktune.tracking.store import ArtifactStoreError, MlflowRun
from sktune.tracking.system import Monitor, watch_system
from sktune.tracking.uri import first_line, is_refusal, sqlite_path

logger = logging.getLogger(__name__)

# A server that is away is asked again after 15 s, then after twice as long each time, at most 5 minutes:
# an attempt can hold up training by one HTTP time-out.
FIRST_RETRY_SECONDS = 15.0
LONGEST_RETRY_SECONDS = 300.0
# How long `finish` waits for a server that is away.
FINISH_SECONDS = 30.0
# The same for a run that was told to stop: whoever told it waits.
STOPPED_SECONDS = 5.0


class RunTracker:
    """The main rank's tracker: writes the local record, then brings MLflow (if any) up to date."""

    def __init__(self, record: Record, mlflow_run: MlflowRun | None, uri: str) -> None:
        """Nothing is sent yet; see `attach`.

        Args:
            record: what has been recorded so far.
            mlflow_run: the MLflow side; None keeps the record only.
            uri: the tracking URI, for messages.
        """
        self._record = record
        self._mlflow_run = mlflow_run
        self._uri = uri
        # Steps an earlier part of this run has logged; a resumed run goes through some of them again.
        self._logged = last_steps(record.points())
        self._last_step = max(self._logged.values(), default=0)
        self._next_attempt = -math.inf
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._away = False
        self._refused = False
        self._monitor: Monitor | None = None

    @property
    def run_id(self) -> str:
        """The MLflow run's id; `local-...` while there is none (disabled, or the server is away)."""
        return self._record.run_id

    def watch_system(self) -> None:
        """Samples the machine from now on; see `tracking.system_metrics`."""
        if self._mlflow_run is None:
            return
        if self._away:
            logger.warning("tracking.system_metrics: nothing is sampled, since MLflow does not answer")
            return
        self._monitor = watch_system(self._uri, self.run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to `metrics.jsonl` and send.

        After a resume the loop goes again through steps the run had logged: those are dropped, per metric.
        """
        accepted = names.sanitise_names(metrics)
        fresh = {name: float(value) for name, value in accepted.items() if step > self._logged.get(name, step - 1)}
        self._last_step = max(self._last_step, step)
        if fresh:
            points = self._record.append(fresh, step)
            if self._mlflow_run:
                self._mlflow_run.waiting.extend(points)
            self._send()

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Numbers become metrics at the last step, everything else params; all named `final/...`."""
        prefix = names.FINAL_PREFIX
        named = {prefix + key.removeprefix(prefix): value for key, value in summary.items()}
        numbers = {k: float(v) for k, v in named.items() if _is_number(v)}
        self._record.add_params(names.as_params({k: v for k, v in named.items() if k not in numbers}))
        self._record.save()
        self.log_metrics(numbers, self._last_step)
        self._send()

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Attach a file or folder; it is read again at a later upload, so it must stay where it is."""
        self._record.add_artifact(Path(path), folder)
        self._record.save()
        self._send()

    def log_model(self, path: Path | str, step: int) -> None:
        """Hand over a folder that MLflow can load; it is read at a later upload, so it must stay where it is."""
        self._record.add_model(Path(path), step)
        self._record.save()
        self._send()

    def log_datasets(self, datasets: Sequence[DatasetEntry]) -> None:
        """Say what the run reads; a resumed run says it again."""
        self._record.state.datasets = list(datasets)
        self._record.save()
        self._send()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or change tags."""
        self._record.state.tags.update(names.as_tags(tags))
        self._record.save()
        self._send()

    def finish(self, status: Status, message: str | None = None) -> None:
        """End the run, once. Waits a bounded time for a server that is away, then says what to do later."""
        state = self._record.state
        if state.status != RUNNING:
            return
        if self._monitor is not None:
            self._monitor.finish()
        state.status, state.end_time = status, now()
        if message and message.strip():
            line = next(line.strip() for line in message.splitlines() if line.strip())
            state.tags[names.ERROR_TAG] = names.shorten(line, names.MAX_TAG_LENGTH)
        self._record.save()
        deadline = time.monotonic() + min(FINISH_SECONDS, STOPPED_SECONDS if status == "KILLED" else math.inf)
        while not self._send(force=True):
            if self._refused or time.monotonic() >= deadline:
                logger.warning(
                    "MLflow at %s did not take the end of the run, which is complete in %s. Upload it with: "
                    "python -m sktune.tracking.replay %s --tracking-uri %s",
                    hide_password(self._uri),
                    self._record.output_dir,
                    self._record.output_dir,
                    hide_password(self._uri),
                )
                return
            time.sleep(min(2.0, FINISH_SECONDS / 4))

    def attach(self) -> None:
        """First contact with the store.

        Raises:
            UserError: the store said no. One that does not answer is a warning, and is asked again later.
        """
        try:
            self._attempt()
            if self._mlflow_run:
                for name, step in self._mlflow_run.sent_steps.items():
                    self._logged[name] = max(step, self._logged.get(name, step))
                self._last_step = max(self._logged.values(), default=0)
        except Exception as error:
            if is_refusal(error) or sqlite_path(self._uri):
                self._record.end("FAILED")
                if self._mlflow_run:
                    self._mlflow_run.abandon()
                raise UserError(
                    f"tracking.tracking_uri: {hide_password(self._uri)!r} was refused "
                    f"({first_line(error, self._uri)}); correct it, or set tracking.enabled=false."
                ) from error
            self._note_away(error)

    def _send(self, force: bool = False) -> bool:
        """Bring MLflow up to date; False where that has to wait. Never raises: training goes on."""
        if self._mlflow_run is None:
            return True
        if not force and time.monotonic() < self._next_attempt:
            return False
        try:
            self._attempt()
        except Exception as error:  # whatever a network, a proxy or a database can come up with
            self._refused = is_refusal(error)  # an answer, so waiting is in vain
            self._note_away(error)
            return False
        return True

    def _attempt(self) -> None:
        if self._mlflow_run is None:
            return
        missed = len(self._mlflow_run.waiting)
        try:
            self._mlflow_run.flush()
        except ArtifactStoreError as error:
            logger.warning(
                "%s. The metrics are tracked all the same; the files are in %s.",
                hide_password(str(error)),
                self._record.output_dir,
            )
        self._next_attempt, self._retry_seconds = -math.inf, FIRST_RETRY_SECONDS
        if self._away:
            self._away = False
            logger.info("MLflow at %s answers again; uploaded %d points.", hide_password(self._uri), missed)

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            logger.warning(
                "MLflow at %s does not answer (%s). Training goes on; metrics are kept in %s and uploaded "
                "when it is back.",
                hide_password(self._uri),
                first_line(error, self._uri),
                self._record.output_dir / METRICS_FILE,
            )
        self._away = True
        self._next_attempt = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, LONGEST_RETRY_SECONDS)


def _is_number(value: object) -> bool:
    """Whether a value is one number: int, float, or a scalar of numpy or torch; a flag is not."""
    if isinstance(value, bool | str) or value is None:
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
