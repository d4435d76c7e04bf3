"""The MLflow side of a run: one flush sends whatever MLflow does not have yet, in order, without doubles."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune.errors import named_line
from sktune.tracking import names
from sktune.tracking.experiment import experiment_id
from sktune.tracking.record import RUNNING, DatasetEntry, Point, Record, last_steps
from sktune.tracking.uri import is_refusal, open_client

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


class ArtifactStoreError(Exception):
    """Files cannot be put where an experiment keeps them, now or later: metrics and params are not concerned."""


class MlflowRun:
    """Brings the MLflow run of a record up to date. What is still missing is always derived, by comparing
    the record with what MLflow was seen to hold; so a new run, a resumed one, one whose server was away
    and one uploaded afterwards all take the same path.
    """

    def __init__(self, uri: str, record: Record) -> None:
        """Open the store (no request to a server yet).

        `waiting` holds the points MLflow lacks; append new ones there. `sent_steps` is the last step of
        each metric that MLflow held at first contact.

        Args:
            uri: an MLflow tracking URI.
            record: the local record; its `state.run_id` is set once the run exists.

        Raises:
            UserError: the URI cannot be used, see `open_client`.
        """
        self.record = record
        self.waiting: deque[Point] = deque(record.points())
        self._uri = uri
        self._client = open_client(uri)
        self._attached = False
        self.sent_steps: dict[str, int] = {}
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._datasets: set[DatasetEntry] = set()
        self._ended = False
        self._refused: set[str] = set()
        self._artifacts_lost = False

    def flush(self) -> None:
        """Send everything MLflow lacks; what has been accepted stays accepted when a later part fails.

        Raises:
            ArtifactStoreError: all but the artifacts was sent, and trying them again is in vain. They are left out from
                then on, and stay to be sent in the record.
            Exception: whatever MLflow, the network or the database raises while it does not answer.
        """
        if not self._attached:
            self._attach()
        run_id, state = self.record.run_id, self.record.state
        self._send_params(run_id)
        self._send_tags(run_id)
        self._send_datasets(run_id)
        self._nest(run_id)
        self._send_points(run_id)
        if state.status != RUNNING and not self._ended:
            self._client.set_terminated(run_id, status=state.status, end_time=state.end_time)
            self._ended = True
        # Last: a store of artifacts that fails must not leave the run without its ending.
        if self._artifacts_lost:
            return
        try:
            self._send_artifacts(run_id)
            self._send_models(run_id)
        except Exception as error:
            if not _is_lasting(error):
                raise
            self._artifacts_lost = True
            raise ArtifactStoreError(self._why_not_kept(run_id, error)) from error

    def abandon(self) -> None:
        """Ends as FAILED the run that a start which is refused has made; one that cannot be reached stays as it is."""
        with suppress(Exception):
            if self.record.state.run_id is not None:
                self._client.set_terminated(self.record.state.run_id, status="FAILED")

    def _why_not_kept(self, run_id: str, error: Exception) -> str:
        experiment = self._client.get_experiment(self._client.get_run(run_id).info.experiment_id)
        if isinstance(error, ImportError):
            cure = f"install {error.name or 'what it names'} with pip"
        else:
            cure = (
                "make that place writable from here, start the server with --serve-artifacts, or choose another "
                "tracking.experiment_name (an experiment's location is fixed when it is made)"
            )
        return (
            f"files of the experiment {experiment.name!r} are kept at {experiment.artifact_location}, which cannot be "
            f"written from here ({named_line(error)}); {cure}"
        )

    def _attach(self) -> None:
        """Find or create the run, and learn what it holds."""
        state = self.record.state
        run = self._find_run()
        if run is None:
            run = self._create_run()
            for entry in state.artifacts:
                entry.sent = False
            for model in state.models:
                model.sent, model.model_id = False, None
        elif state.status == RUNNING and run.info.status != RUNNING:
            self._client.update_run(run.info.run_id, status=RUNNING)
        state.run_id = run.info.run_id
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        # The record may be younger than the run (another folder): compare with what the run has.
        for name, value in self._params.items():
            if state.params.get(name, value) != value:
                changed = names.shorten(state.params[name], names.MAX_TAG_LENGTH)
                state.tags.setdefault(f"{names.RESUMED_PREFIX}{name}", changed)
        if names.ERROR_TAG in self._tags and names.ERROR_TAG not in state.tags:
            self._client.delete_tag(run.info.run_id, names.ERROR_TAG)
        self.record.save()
        self.sent_steps = sent = self._last_steps(run)
        self.waiting = deque(p for p in self.waiting if p.step > sent.get(p.name, p.step - 1))
        self._attached = True

    def _last_steps(self, run: Run) -> dict[str, int]:
        """Highest step MLflow holds of each metric of the run; samples of the machine have numbers of their own."""
        own = [name for name in run.data.metrics if not name.startswith(names.SYSTEM_PREFIX)]
        histories = (self._client.get_metric_history(run.info.run_id, name) for name in own)
        return last_steps([Point(m.key, m.value, m.step, m.timestamp) for h in histories for m in h])

    def _find_run(self) -> Run | None:
        from mlflow.exceptions import MlflowException

        run_id = self.record.state.run_id
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
        logger.warning(
            "tracking.tracking_uri: the MLflow run %s is not (or no longer) in this store; its whole record "
            "is uploaded as a new run. To continue the old one, give the store it was started with.",
            run_id,
        )
        return None

    def _create_run(self) -> Run:
        state = self.record.state
        experiment = experiment_id(self._client, state.experiment_name, self._uri)
        # An earlier attempt may have made the run and not lived to hear of it.
        found = self._run_of(experiment, state.local_id)
        if found is not None:
            return found
        return self._client.create_run(
            experiment,
            start_time=state.start_time,
            run_name=state.run_name,
            tags={names.LOCAL_ID_TAG: state.local_id},
        )

    def _run_of(self, experiment: str, local_id: str) -> Run | None:
        mine = f"tags.`{names.LOCAL_ID_TAG}` = '{local_id}'"
        return next(iter(self._client.search_runs([experiment], filter_string=mine, max_results=1)), None)

    def _nest(self, run_id: str) -> None:
        """Puts the run below the one it belongs to, once this store has that one."""
        parent = self.record.state.tags.get(names.PARENT_LOCAL_ID_TAG)
        if parent is None or names.PARENT_RUN_TAG in self._tags:
            return
        found = self._run_of(self._client.get_run(run_id).info.experiment_id, parent)
        if found is not None:
            self._client.set_tag(run_id, names.PARENT_RUN_TAG, found.info.run_id)
            self._tags[names.PARENT_RUN_TAG] = found.info.run_id

    def _send_params(self, run_id: str) -> None:
        from mlflow.entities import Param

        missing = {k: v for k, v in self.record.state.params.items() if k not in self._params}
        for batch in _batches(missing.items(), names.MAX_PARAMS_PER_BATCH):
            self._log_batch(run_id, "params", params=[Param(k, v) for k, v in batch])
            self._params.update(batch)

    def _send_tags(self, run_id: str) -> None:
        from mlflow.entities import RunTag

        missing = {k: v for k, v in self.record.state.tags.items() if self._tags.get(k) != v}
        for batch in _batches(missing.items(), names.MAX_PARAMS_PER_BATCH):
            self._log_batch(run_id, "tags", tags=[RunTag(k, v) for k, v in batch])
            self._tags.update(batch)

    def _send_datasets(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        missing = [entry for entry in self.record.state.datasets if entry not in self._datasets]
        if missing:  # MLflow keeps one of those that are the same
            inputs = [
                DatasetInput(
                    Dataset(e.name, e.digest, e.source_type, e.source, profile=json.dumps({"num_rows": e.rows})),
                    [InputTag(MLFLOW_DATASET_CONTEXT, e.context)],
                )
                for e in missing
            ]
            self._client.log_inputs(run_id, inputs)
            self._datasets.update(missing)

    def _send_points(self, run_id: str) -> None:
        from mlflow.entities import Metric

        while self.waiting:
            batch = list(islice(self.waiting, names.MAX_METRICS_PER_BATCH))
            metrics = [Metric(p.name, p.value, p.time, p.step) for p in batch]
            self._log_batch(run_id, "metrics", metrics=metrics)
            for _ in batch:
                self.waiting.popleft()

    def _send_artifacts(self, run_id: str) -> None:
        for entry in self.record.state.artifacts:
            if entry.sent:
                continue
            path = self.record.output_dir / entry.path
            if self._is_elsewhere(entry.path):
                logger.warning("%s: not in the run's folder, so it is not uploaded as an artifact.", path)
            elif path.is_dir():
                folder = os.path.join(entry.folder or "", path.name)
                self._client.log_artifacts(run_id, str(path), folder)
            elif path.exists():
                self._client.log_artifact(run_id, str(path), entry.folder)
            else:
                logger.warning("%s: no longer there, so it is not uploaded as an artifact.", path)
            entry.sent = True
            self.record.save()

    def _is_elsewhere(self, place: str) -> bool:
        """Whether a path is not in the run's folder, and this process has not named it itself.

        A record that came with somebody else's run could name any file of this machine.
        """
        root = self.record.output_dir.resolve()
        return place not in self.record.own and not (root / place).resolve().is_relative_to(root)

    def _send_models(self, run_id: str) -> None:
        """Models with their files and the scores of their weights, each a point that the run has too."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
        from mlflow.exceptions import MlflowException

        state = self.record.state
        for entry in state.models:
            folder = self.record.output_dir / entry.path
            if entry.sent:
                continue
            if self._is_elsewhere(entry.path) or not folder.is_dir():
                logger.warning("%s: no folder of this run (any more), so it is not uploaded as a model.", folder)
                entry.sent = True
                continue
            if entry.model_id is None:
                experiment = self._client.get_run(run_id).info.experiment_id
                tags = {name: state.tags[name] for name in names.OF_A_MODEL if name in state.tags}
                name = names.model_name(state.run_name)
                try:
                    model = self._client.create_logged_model(experiment, name, run_id, tags, state.params)
                except MlflowException as error:
                    if error.get_http_status_code() not in (404, 405, 501):
                        raise
                    logger.warning("this server of MLflow keeps no models (MLflow 3 does); the run has all the rest")
                    entry.sent = True
                    continue
                entry.model_id = model.model_id
                self.record.save()
                self._client.log_outputs(run_id, [LoggedModelOutput(entry.model_id, entry.step)])
            _write_id(folder, entry.model_id)
            self._client.log_model_artifacts(entry.model_id, str(folder))
            scores = [
                Metric(p.name, p.value, p.time, p.step, model_id=entry.model_id)
                for p in self.record.points()
                if names.is_score_of_model(p.name, p.step, entry.step)
            ]
            self._log_batch(run_id, "scores of a model", metrics=scores)
            self._client.finalize_logged_model(entry.model_id, LoggedModelStatus.READY)
            entry.sent = True
            self.record.save()

    def _log_batch(self, run_id: str, what: str, **entities: Any) -> None:
        """`log_batch`, where a refusal of the content is a warning: it must not hold up what follows."""
        from mlflow.exceptions import MlflowException

        try:
            # synchronous: MLflow's asynchronous logging loses what it could not send.
            self._client.log_batch(run_id, synchronous=True, **entities)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if what not in self._refused:
                logger.warning("MLflow refuses %s (kept in %s): %s", what, self.record.output_dir, error)
            self._refused.add(what)


def _write_id(folder: Path, model_id: str) -> None:
    """Says in the model's own description which one it is: what scores it later is then put to its account."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.model_id = model_id
    model.save(str(folder / "MLmodel"))


def _is_lasting(error: Exception) -> bool:
    """Whether an upload failed for a reason that waiting does not remove: a package, a right or a place is missing."""
    from requests import RequestException

    if isinstance(error, RequestException | ConnectionError | TimeoutError):  # OSErrors too
        return False
    return isinstance(error, ImportError | OSError) or is_refusal(error)


def _batches(items: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
