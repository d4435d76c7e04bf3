"""Checkpoints that any number of ranks can load: adapter, head, optimizer and position, never the backbone.

A checkpoint is written under a temporary name, read back, and renamed: the last good one survives any kill.
There is nothing else to keep: the rate and the random numbers of a step are functions of the seed and the step
(`training.run`), and so is the place in the data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sktune.distributed.engine import Engine, State
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import ADAPTER_WEIGHTS, CHECKPOINTS_FOLDER, OPTIMIZER_WEIGHTS, PROGRESS_FILE
from sktune.model.adapter import read_weights
from sktune.tasks.metrics import is_better


@dataclass
class Progress:
    """Where a run stands after `step` optimizer updates."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_improvement: int = 0
    real_tokens: int = 0
    train_seconds: float = 0.0
    unlogged_loss: float = 0.0
    unlogged_labels: int = 0
    """Loss and labels since the last log line."""
    run_id: str | None = None
    """MLflow's id of the run, which a resumed run continues."""
    global_batch_size: int = 0
    world_size: int = 0
    """Both of the part of the run that wrote the checkpoint."""
    read: dict[str, str] = field(default_factory=dict)
    """What the run has read (`fingerprint`)."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics of each evaluation, with its step."""

    @property
    def is_evaluated(self) -> bool:
        """Whether validation has been scored after this step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    def note(self, metrics: Mapping[str, float], metric: str, threshold: float) -> bool:
        """Takes down an evaluation after this step; returns whether it is the best, by more than the threshold."""
        self.history.append({"step": float(self.step), **metrics})
        better = is_better(metric, metrics[metric], self.best_value, threshold)
        if better:
            self.best_step, self.best_value, self.evaluations_without_improvement = self.step, metrics[metric], 0
        else:
            self.evaluations_without_improvement += 1
        return better

    def stops_early(self, patience: int | None) -> bool:
        """The same on every rank: metrics are of gathered answers. A resumed run that had stopped stays stopped."""
        return patience is not None and self.evaluations_without_improvement >= patience


class Checkpoints:
    """Writes a run's checkpoints, one a step."""

    def __init__(self, output_dir: Path, keep: int, engine: Engine, ranks: Ranks, progress: Progress) -> None:
        self.output_dir, self.keep, self.engine, self.ranks, self.progress = output_dir, keep, engine, ranks, progress
        # Before the first update there is nothing to go on from: a run of zero steps leaves no checkpoint.
        self._saved_step = progress.step

    def save(self) -> None:
        """Saves where the run stands, unless that has been done; collective."""
        if self._saved_step == self.progress.step:
            return
        weights, moments = self.engine.weights(), self.engine.optimizer_state()
        self.ranks.on_main(lambda: save_checkpoint(self.output_dir, weights, moments, self.progress, self.keep))
        self._saved_step = self.progress.step

    def load_best(self) -> None:
        """Puts the weights of the best evaluation into the engine, where they are not the last ones."""
        best = self.progress.best_step
        if best is not None and best != self.progress.step:
            weights, _, _ = load_checkpoint(checkpoint_path(self.output_dir, best))
            self.engine.load_weights(weights)


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates."""
    return output_dir / CHECKPOINTS_FOLDER / f"step-{step:08d}"


def save_checkpoint(output_dir: Path, weights: State, optimizer: State, progress: Progress, keep: int) -> Path:
    """Writes a checkpoint and removes the oldest beyond `keep`, never the best one. On one rank only."""
    final = checkpoint_path(output_dir, progress.step)
    temporary = final.with_name(final.name + ".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(weights, temporary / ADAPTER_WEIGHTS)
    save_file(optimizer, temporary / OPTIMIZER_WEIGHTS)
    (temporary / PROGRESS_FILE).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    load_checkpoint(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    kept = {progress.step, progress.best_step, *list_checkpoints(output_dir)[-keep:]}
    for step in list_checkpoints(output_dir):
        if step not in kept:
            shutil.rmtree(checkpoint_path(output_dir, step))
    return final


def load_checkpoint(folder: Path) -> tuple[State, State, Progress]:
    """(weights, optimizer state, progress) of one checkpoint.

    Raises:
        UserError: for a damaged or incomplete one.
    """
    try:
        values = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        progress = Progress(**{entry.name: values[entry.name] for entry in fields(Progress) if entry.name in values})
        return read_weights(folder / ADAPTER_WEIGHTS), load_file(folder / OPTIMIZER_WEIGHTS), progress
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({error}); remove the folder to resume from an older one"
        ) from error


def list_checkpoints(output_dir: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    folders = (output_dir / CHECKPOINTS_FOLDER).glob("step-*")
    return sorted(int(f.name.removeprefix("step-")) for f in folders if f.name.removeprefix("step-").isdigit())


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    steps = list_checkpoints(output_dir)
    return checkpoint_path(output_dir, steps[-1]) if steps else None
