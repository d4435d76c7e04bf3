"""Checkpoints that any number of ranks can load: adapter, head, optimizer and position, never the backbone.

A checkpoint is written under a temporary name, read back, and renamed: the last good one survives any kill.
There is nothing else to keep: the rate and the random numbers of a step are functions of the seed and the step
(`training.loop`), and so is the place in the data.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sktune.distributed.engine import State
from sktune.files import ADAPTER_WEIGHTS, CHECKPOINTS_FOLDER, OPTIMIZER_WEIGHTS, PROGRESS_FILE


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
    seed: int = 0
    global_batch_size: int = 0
    world_size: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics of each evaluation, with its step."""


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
        ValueError: for a damaged or incomplete one.
    """
    try:
        progress = Progress(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
        return load_file(folder / ADAPTER_WEIGHTS), load_file(folder / OPTIMIZER_WEIGHTS), progress
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(
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
