"""The output folder of a run: who may write there, and what a run finds there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sktune.distributed.engine import State
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    DEEPSPEED_FILE,
    EVALUATION_FOLDER,
    FIGURES_FOLDER,
    FROZEN_STATES_FOLDER,
    METRICS_FILE,
    PREDICTIONS_FOLDER,
    RECIPE_FILE,
    SUMMARY_FILE,
    TRACKING_FOLDER,
    locked,
    write_whole,
)
from sktune.recipe import LoadedRecipe, flatten, load_recipe_document
from sktune.training.checkpoint import Progress, latest_checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

# A resumed run may change these; anything else would make it another run.
CHANGEABLE_ON_RESUME = ("training.", "distributed.", "tracking.", "output.", "data.max_validation", "data.max_test")


# What a run that starts anew removes of an earlier one.
_OF_A_RUN = (
    *(CHECKPOINTS_FOLDER, ADAPTER_FOLDER, PREDICTIONS_FOLDER, FIGURES_FOLDER, EVALUATION_FOLDER, TRACKING_FOLDER),
    *(FROZEN_STATES_FOLDER, METRICS_FILE, SUMMARY_FILE, DEEPSPEED_FILE),
)


@contextmanager
def kept_folder(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keeps an output folder to this command, by a lock that the main rank holds; see `files.locked`.

    Raises:
        UserError: on all ranks, where another process has it.
    """
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(locked(folder)))
        yield


@contextmanager
def claim_output(
    loaded: LoadedRecipe, output_dir: Path, ranks: Ranks
) -> Iterator[tuple[Path | None, State, State, Progress]]:
    """Keeps the output folder to this run and makes it ready; one rank decides for all.

    Yields:
        The checkpoint to resume from with its weights, optimizer state and progress; None and empty ones for a run that
        starts anew.

    Raises:
        UserError: where the folder holds a run that this one neither continues nor may replace, or one is going on.
    """
    with kept_folder(output_dir, ranks):
        checkpoint = ranks.broadcast(ranks.on_main(lambda: _claim(loaded, output_dir)))
        yield (checkpoint, *(load_checkpoint(checkpoint) if checkpoint else ({}, {}, Progress())))


def _claim(loaded: LoadedRecipe, output_dir: Path) -> Path | None:
    recipe = loaded.recipe
    used = (output_dir / RECIPE_FILE).exists()
    checkpoint = latest_checkpoint(output_dir) if recipe.training.resume == "auto" else None
    if used and checkpoint is None and not recipe.output.overwrite and recipe.training.resume != "auto":
        raise UserError(
            f"output.dir: {output_dir} already holds a run; continue it with training.resume=auto (--resume), "
            "start anew with output.overwrite=true, or choose another folder"
        )
    if checkpoint is not None:
        _check_same_run(loaded, output_dir / RECIPE_FILE)
    elif used:
        for name in _OF_A_RUN:
            path = output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_whole(output_dir / RECIPE_FILE, loaded.text())
    return checkpoint


def _check_same_run(loaded: LoadedRecipe, earlier_file: Path) -> None:
    earlier = flatten(load_recipe_document(earlier_file).loggable())
    now = flatten(loaded.loggable())
    changed = {
        key: (earlier.get(key), now.get(key))
        for key in {*earlier, *now}
        if earlier.get(key) != now.get(key) and key != "training.resume"
    }
    refused = sorted(key for key in changed if key == "training.seed" or not key.startswith(CHANGEABLE_ON_RESUME))
    if refused:
        listed = "; ".join(f"{key} was {changed[key][0]!r} and is {changed[key][1]!r}" for key in refused)
        raise UserError(
            f"training.resume: the run in {earlier_file.parent} was another one: {listed}; change it back, or use "
            "another output.dir"
        )
    for key in sorted(changed):
        logger.warning("resuming with a changed %s: was %r, is %r", key, *changed[key])
