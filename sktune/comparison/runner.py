"""Running a comparison: every rank runs the same cells in the same order, the main one keeps the books."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sktune.allocator import give_back_freed_memory
from sktune.comparison.cells import Cell
from sktune.comparison.floor import constant_answer
from sktune.comparison.parent import cell_tags, end_abandoned_run, log_report, start_parent
from sktune.comparison.report import Report, build_report
from sktune.comparison.results import ComparisonState, load_state, read_results
from sktune.comparison.tables import write_report
from sktune.data import load_splits
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError, hide_password, named_line
from sktune.files import (
    COMPARISON_FILE,
    ERROR_FILE,
    FROZEN_STATES_FOLDER,
    RECIPE_FILE,
    REPORT_FOLDER,
    RUN_MARK,
    SUMMARY_FILE,
    write_whole,
)
from sktune.recipe import LoadedRecipe
from sktune.tasks.task import build_task
from sktune.tracking import Tracker, names
from sktune.training.checkpoint import latest_checkpoint
from sktune.training.frozen_states import remove_frozen_states
from sktune.training.output import kept_folder
from sktune.training.run import train
from sktune.training.tracked import ended

logger = logging.getLogger(__name__)


def compare(
    cells: Sequence[Cell], base: LoadedRecipe, overrides: Sequence[str], folder: Path, ranks: Ranks
) -> Report | None:
    """Runs what has not finished yet, and reports over all of it.

    A cell that fails with the user's mistake or a loss that is no number is recorded, and the next one runs. With
    one process that holds for any error; with several an unexpected one may have parted the ranks, so it ends
    the launch, and the same command goes on from there. Cells that failed before are tried again last.

    Returns:
        The report, on the main rank.

    Raises:
        UserError: for what makes the whole comparison impossible.
    """
    with kept_folder(folder, ranks):
        state = ranks.broadcast(ranks.on_main(lambda: _open(cells, base, overrides, folder, ranks)))
        assert state is not None
        return _compare(cells, base, state, folder, ranks)


def _compare(
    cells: Sequence[Cell], base: LoadedRecipe, state: ComparisonState, folder: Path, ranks: Ranks
) -> Report | None:
    start = partial(start_parent, base, state, folder, ranks)
    tracker, tags = ranks.on_main(start) or start()
    with ended(tracker):
        failed = {cell.name for cell in state.cells if cell.status == "failed"}
        for number, cell in enumerate(sorted(cells, key=lambda cell: cell.name in failed), 1):
            finished = ranks.broadcast(state.cell(cell.name).status == "finished")
            logger.info("cell %d/%d: %s%s", number, len(cells), cell.name, " (finished before)" if finished else "")
            if not finished:
                if ranks.is_main:
                    end_abandoned_run(base, folder / state.cell(cell.name).folder)
                _run(cell, {**tags, **cell_tags(cell)}, state, folder, ranks)
                tracker.set_tags({names.CELLS_TAG: _progress(state)})
        report = _report(base, folder, tracker) if ranks.is_main else None
        if report is not None and report.failed:
            tracker.finish("FAILED", f"{len(report.failed)} cells failed: {', '.join(report.failed)}")
        else:
            tracker.finish("FINISHED")
        # No other cell is to use what this comparison has kept.
        if ranks.broadcast(all(cell.status == "finished" for cell in state.cells)) and ranks.local_rank == 0:
            remove_frozen_states(folder)
        ranks.barrier()
        return report


def _open(
    cells: Sequence[Cell], base: LoadedRecipe, overrides: Sequence[str], folder: Path, ranks: Ranks
) -> ComparisonState:
    """The folder's comparison with these cells in it; on the main rank."""
    recipe = base.recipe
    if (folder / COMPARISON_FILE).exists():
        state = load_state(folder)
    elif (folder / RECIPE_FILE).exists():
        raise UserError(f"output.dir: {folder} holds a single run; choose another folder for the comparison (--output)")
    else:
        state = ComparisonState(
            name=folder.resolve().name,
            recipe=str(base.source),
            overrides=[hide_password(override) for override in overrides],
            task=recipe.task.name,
            metric=recipe.training.metric_for_best_model or recipe.task.metrics()[0],
            select=recipe.compare.select,
        )
    for cell in state.add(list(cells), {"ranks": ranks.world_size, "device": ranks.device.type}):
        shutil.rmtree(folder / cell.folder, ignore_errors=True)
    if state.floor is None:
        # Also finds the data's mistakes before the first cell.
        task = build_task(recipe.task)
        state.floor = constant_answer(load_splits(recipe.data, task), task)
    state.select = recipe.compare.select
    state.environment = _environment(ranks)
    state.save(folder)
    return state


def _run(cell: Cell, tags: dict[str, str], state: ComparisonState, folder: Path, ranks: Ranks) -> None:
    place = folder / state.cell(cell.name).folder
    earlier: dict[str, Any] = {}
    if ranks.is_main:
        earlier = _earlier_summary(place)
        if latest_checkpoint(place) is None and (place / RUN_MARK).exists():
            shutil.rmtree(place)  # of a cell that takes no steps and was killed near its end
        (place / ERROR_FILE).unlink(missing_ok=True)
        state.note(folder, cell.name, "running")
    try:
        summary = train(cell.loaded, ranks, tags, folder / FROZEN_STATES_FOLDER)
    except Exception as error:
        same_on_all_ranks = isinstance(error, UserError | FloatingPointError)
        if ranks.is_main:
            write_whole(place / ERROR_FILE, traceback.format_exc())
            message = named_line(error)
            state.note(folder, cell.name, "failed", error=message)
            logger.error("cell %s failed: %s", cell.name, message)
        if ranks.world_size > 1 and not same_on_all_ranks:
            raise
    else:
        if ranks.is_main:
            state.note(folder, cell.name, "finished", summary=earlier | summary)
    _give_back_memory()


def _earlier_summary(place: Path) -> dict[str, Any]:
    """Numbers of a cell that was killed just after its end: going on from its last step measures no speed."""
    try:
        return dict(json.loads((place / SUMMARY_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _report(base: LoadedRecipe, folder: Path, tracker: Tracker) -> Report:
    report = build_report(read_results(folder))
    files = write_report(report, folder / REPORT_FOLDER)
    address = log_report(base, report, [*files, folder / COMPARISON_FILE], tracker, folder)
    if address is not None:
        logger.info("side by side in MLflow: %s", address)
    return report


def _progress(state: ComparisonState) -> str:
    counts = {status: sum(cell.status == status for cell in state.cells) for status in ("finished", "failed")}
    return f"{counts['finished']} of {len(state.cells)} finished" + (
        f", {counts['failed']} failed" if counts["failed"] else ""
    )


def _environment(ranks: Ranks) -> dict[str, Any]:
    packages = ("sktune", "torch", "transformers", "deepspeed", "bitsandbytes", "peft")
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return {
        "device": device,
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **versions,
    }


def _give_back_memory() -> None:
    """So that a cell's peak does not count what an earlier one left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_freed_memory()
