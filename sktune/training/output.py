"""The output folder of a run: who may write there, and what a run finds there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sktune.distributed.engine import State
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import (
    ADAPTER_CARD,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    CHECKPOINTS_FOLDER,
    CONFUSION_FIGURE_FILE,
    DEEPSPEED_FILE,
    EVALUATION_FOLDER,
    F1_FIGURE_FILE,
    FIGURES_FOLDER,
    FROZEN_STATES,
    METRICS_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FOLDER,
    RECIPE_FILE,
    RUN_MARK,
    SUMMARY_FILE,
    TEST_PREDICTIONS_FILE,
    TRACKING_RECIPE_FILE,
    TRACKING_STATE_FILE,
    locked,
    write_whole,
)
from sktune.recipe import LoadedRecipe, flatten, load_recipe_document
from sktune.tracking import names
from sktune.training.checkpoint import Progress, latest_checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

# A resumed run may change these; anything else would make it another run.
CHANGEABLE_ON_RESUME = ("training.", "distributed.", "tracking.", "output.", "data.max_validation", "data.max_test")


# What a run leaves, and one that starts anew removes: these names alone, whatever else lies beside them.
_OF_A_RUN = (
    *(METRICS_FILE, SUMMARY_FILE, DEEPSPEED_FILE, TRACKING_STATE_FILE, TRACKING_RECIPE_FILE),
    f"{CHECKPOINTS_FOLDER}/step-*",
    MODEL_FOLDER,
    *FROZEN_STATES,
    *(f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_WEIGHTS, ADAPTER_CARD, RECIPE_FILE)),
    f"{PREDICTIONS_FOLDER}/{TEST_PREDICTIONS_FILE}",
    *(f"{FIGURES_FOLDER}/{name}" for name in (F1_FIGURE_FILE, CONFUSION_FIGURE_FILE)),
    *(f"{EVALUATION_FOLDER}/{split}*.json*" for split in ("train", "validation", "test")),
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
    recipe, mark = loaded.recipe, output_dir / RUN_MARK
    resumes = recipe.training.resume == "auto"
    checkpoint = latest_checkpoint(output_dir) if resumes else None
    if checkpoint is not None:
        _check_same_run(loaded, output_dir / RECIPE_FILE)
    elif not mark.exists():
        _refuse_files_of_others(output_dir)
    elif resumes and _trained_something(output_dir):
        raise UserError(
            f"output.dir: {output_dir} holds a finished run and no checkpoint to go on from; start anew with "
            "output.overwrite=true (and without --resume), or choose another folder"
        )
    elif _holds_a_run(output_dir) and not resumes and not recipe.output.overwrite:
        raise UserError(
            f"output.dir: {output_dir} already holds a run; continue it with training.resume=auto (--resume), "
            "start anew with output.overwrite=true, or choose another folder"
        )
    else:
        # States say themselves what they are of: a run that was stopped while it read them goes on with those.
        _remove_run(output_dir, but=FROZEN_STATES if resumes else ())
    write_whole(mark, "A run of sktune has claimed this folder; its files are replaced with output.overwrite.\n")
    write_whole(output_dir / RECIPE_FILE, loaded.whole_text())
    return checkpoint


def _holds_a_run(output_dir: Path) -> bool:
    """Whether something would be lost; a run that ended before its first checkpoint has left nothing of worth."""
    finished = ((output_dir / SUMMARY_FILE), (output_dir / ADAPTER_FOLDER / ADAPTER_CARD))
    return latest_checkpoint(output_dir) is not None or any(file.exists() for file in finished)


def _trained_something(output_dir: Path) -> bool:
    """Whether a finished run took steps, which another start could not give back."""
    if not _holds_a_run(output_dir):
        return False
    try:
        return bool(json.loads((output_dir / SUMMARY_FILE).read_text(encoding="utf-8"))[names.STEPS])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _refuse_files_of_others(output_dir: Path) -> None:
    found = [name for pattern in (RECIPE_FILE, *_OF_A_RUN) for name in sorted(output_dir.glob(pattern))]
    if found:
        listed = ", ".join(str(path.relative_to(output_dir)) for path in found[:3]) + (" ..." if found[3:] else "")
        raise UserError(
            f"output.dir: {output_dir} holds {listed}, which a run would write over, and no mark of sktune's "
            f"({RUN_MARK}) says that they are a run's; choose another folder, or move them away"
        )


def _remove_run(output_dir: Path, but: Sequence[str]) -> None:
    for pattern in (pattern for pattern in _OF_A_RUN if pattern not in but):
        for path in output_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        with suppress(OSError):  # not there, or not empty
            if (folder := (output_dir / pattern).parent) != output_dir:
                folder.rmdir()


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
