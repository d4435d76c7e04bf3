"""The local record of a run in `output.dir`: `metrics.jsonl` and `tracking/run.json`.

Everything is written here before MLflow hears of it, so that a server which is down, or no server at
all, loses nothing, and `sktune.tracking.replay` can upload the run later.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sktune.errors import UserError
from sktune.files import METRICS_FILE, TRACKING_STATE_FILE, write_whole
from sktune.tracking import names

RUNNING = "RUNNING"
LOCAL_PREFIX = "local-"


class Point(NamedTuple):
    """One metric value at one optimizer step; `time` in milliseconds since 1970."""

    name: str
    value: float
    step: int
    time: int


@dataclass
class ArtifactEntry:
    """A file or folder that belongs to the run (seen from the run's folder), and whether MLflow has it."""

    path: str
    folder: str | None
    sent: bool = False


@dataclass(frozen=True)
class DatasetEntry:
    """A split that the run reads.

    name: of the data set and split.
    digest: of its examples as they were read; at most 36 characters.
    context: `training`, `validation` or `test`.
    source_type, source: where it came from, in the words of MLflow's kinds of sources; the source is JSON.
    rows: of examples.
    """

    name: str
    digest: str
    context: str
    source_type: str
    source: str
    rows: int


@dataclass
class ModelEntry:
    """A folder that MLflow can load (seen from the run's folder), and what MLflow has of it.

    step: after which its weights were saved.
    model_id: MLflow's, once it knows of the model.
    """

    path: str
    step: int
    model_id: str | None = None
    sent: bool = False


@dataclass
class RunState:
    """`tracking/run.json`: what is needed to make or continue the MLflow run."""

    local_id: str
    experiment_name: str
    run_name: str
    tracking_uri: str
    run_id: str | None = None
    start_time: int = 0
    end_time: int | None = None
    status: str = RUNNING
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[ArtifactEntry] = field(default_factory=list)
    datasets: list[DatasetEntry] = field(default_factory=list)
    models: list[ModelEntry] = field(default_factory=list)


class Record:
    """The two files of a run; single writer (the main rank)."""

    def __init__(self, output_dir: Path, state: RunState) -> None:
        self.output_dir = output_dir
        self.state = state
        self.own: set[str] = set()
        """Paths of artifacts that this process has named itself: they may lie anywhere."""

    @property
    def run_id(self) -> str:
        """The MLflow run's id, or the provisional `local-...` one until MLflow has answered."""
        return self.state.run_id or self.state.local_id

    @classmethod
    def create(cls, output_dir: Path, experiment_name: str, run_name: str, tracking_uri: str) -> Record:
        """A new run; an older record in the folder is removed (`output.overwrite` decided that)."""
        (output_dir / METRICS_FILE).unlink(missing_ok=True)
        (output_dir / TRACKING_STATE_FILE).unlink(missing_ok=True)
        local_id = f"{LOCAL_PREFIX}{uuid.uuid4().hex}"
        state = RunState(local_id, experiment_name, run_name, tracking_uri, start_time=now())
        return cls(output_dir, state)

    @classmethod
    def resume(cls, output_dir: Path, run_id: str, experiment_name: str, run_name: str, tracking_uri: str) -> Record:
        """The record of the run `run_id`, RUNNING again; a new one for it where the folder has none."""
        if (output_dir / TRACKING_STATE_FILE).exists():
            record = cls.load(output_dir)
            if run_id in (record.state.run_id, record.state.local_id):
                state = record.state
                # How the run ended before says nothing about how it ends now.
                state.status, state.end_time, state.tracking_uri = RUNNING, None, tracking_uri
                state.tags.pop(names.ERROR_TAG, None)
                return record
        record = cls.create(output_dir, experiment_name, run_name, tracking_uri)
        record.state.run_id = None if run_id.startswith(LOCAL_PREFIX) else run_id
        return record

    @classmethod
    def load(cls, output_dir: Path) -> Record:
        """The record of an earlier run.

        Raises:
            UserError: there is none in the folder, or it cannot be read.
        """
        path = output_dir / TRACKING_STATE_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values["artifacts"] = [ArtifactEntry(**entry) for entry in values["artifacts"]]
            values["datasets"] = [DatasetEntry(**entry) for entry in values.get("datasets", ())]
            values["models"] = [ModelEntry(**entry) for entry in values.get("models", ())]
            return cls(output_dir, RunState(**values))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; give the output.dir of a run that sktune has started.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a record that sktune has written ({error}).") from error

    def save(self) -> None:
        """Write `tracking/run.json` in one step, so that a kill leaves the old or the new one."""
        text = json.dumps(asdict(self.state), indent=1, ensure_ascii=False)
        write_whole(self.output_dir / TRACKING_STATE_FILE, text)

    def end(self, status: str) -> None:
        """The run ends now; see `RunState.status`."""
        self.state.status, self.state.end_time = status, now()
        self.save()

    def append(self, metrics: Mapping[str, float], step: int) -> list[Point]:
        """Append one line to `metrics.jsonl`; returns its points."""
        # Strict JSON has no NaN or Infinity: they are written as text, which float() reads back.
        values = {key: value if math.isfinite(value) else str(value) for key, value in metrics.items()}
        entry = {"time": now(), "step": step, "metrics": values}
        with (self.output_dir / METRICS_FILE).open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run left half a line
                    file.write(b"\n")
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        return _entry_points(entry)

    def points(self) -> list[Point]:
        """All points of `metrics.jsonl`, oldest first; half a line left by a kill is skipped."""
        path = self.output_dir / METRICS_FILE
        if not path.exists():
            return []
        result: list[Point] = []
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            result += _entry_points(entry)
        return result

    def add_params(self, params: Mapping[str, str]) -> None:
        """Add params; one that a resumed run changes becomes a tag, for MLflow's params never change."""
        for name, value in params.items():
            tag = f"{names.RESUMED_PREFIX}{name}"
            if self.state.params.setdefault(name, value) != value or tag in self.state.tags:
                self.state.tags[tag] = names.shorten(value, names.MAX_TAG_LENGTH)

    def add_artifact(self, path: Path, folder: str | None) -> None:
        """Add a file or folder, to be uploaded (again)."""
        place = os.path.relpath(path.absolute(), self.output_dir.absolute())
        self.own.add(place)
        others = [entry for entry in self.state.artifacts if (entry.path, entry.folder) != (place, folder)]
        self.state.artifacts = [*others, ArtifactEntry(place, folder)]

    def add_model(self, path: Path, step: int) -> ModelEntry:
        """Add a folder that MLflow can load, to be uploaded."""
        place = os.path.relpath(path.absolute(), self.output_dir.absolute())
        self.own.add(place)
        entry = ModelEntry(place, step)
        self.state.models = [*(model for model in self.state.models if model.path != place), entry]
        return entry


def last_steps(points: list[Point]) -> dict[str, int]:
    """Highest step of each metric."""
    result: dict[str, int] = {}
    for point in points:
        result[point.name] = max(result.get(point.name, point.step), point.step)
    return result


def now() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return int(time.time() * 1000)


def _entry_points(entry: dict[str, Any]) -> list[Point]:
    step, time_ms = entry["step"], entry["time"]
    return [Point(name, float(value), step, time_ms) for name, value in entry["metrics"].items()]
