"""The comparison's own MLflow run: its cells are nested below it, and it holds the report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune.comparison.cells import Cell
from sktune.comparison.report import Report
from sktune.comparison.results import ComparisonState
from sktune.distributed.ranks import Ranks
from sktune.errors import hide_password
from sktune.files import CELLS_FOLDER, REPORT_FOLDER, TRACKING_STATE_FILE
from sktune.recipe import LoadedRecipe
from sktune.tasks.metrics import SMALLER_IS_BETTER
from sktune.tracking import Tracker, names, start_tracking
from sktune.tracking.record import LOCAL_PREFIX, RUNNING, Record
from sktune.tracking.saved_view import metric_column, save_view, tag_column, view_address
from sktune.tracking.uri import first_line, open_client
from sktune.training.checkpoint import latest_checkpoint
from sktune.training.tracked import run_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_OF_ONE_METHOD = (names.METHOD_TAG, names.SEED_TAG)


def start_parent(
    base: LoadedRecipe, state: ComparisonState, folder: Path, ranks: Ranks
) -> tuple[Tracker, dict[str, str]]:
    """(tracker of the comparison's run, tags that nest a cell's run below it).

    Raises:
        UserError: where tracking cannot be used; on the main rank only.
    """
    recipe = base.recipe
    earlier = Record.load(folder).run_id if (folder / TRACKING_STATE_FILE).exists() else None
    tags = {key: value for key, value in run_tags(recipe, ranks).items() if key not in _OF_ONE_METHOD}
    tracker = start_tracking(
        recipe.tracking.model_copy(update={"run_name": recipe.tracking.run_name or state.name}),
        recipe_params={**base.loggable(), "compare": base.as_written.get("compare") or {}},
        tags={**tags, **parent_tags(state)},
        run_name=state.name,
        run_id=earlier,
        output_dir=folder,
        is_main=ranks.is_main,
    )
    if not ranks.is_main:
        return tracker, {}
    return tracker, {names.PARENT_LOCAL_ID_TAG: Record.load(folder).state.local_id}


def parent_tags(state: ComparisonState) -> dict[str, str]:
    """What `sktune report EXPERIMENT` reads of the comparison."""
    return {
        names.COMPARISON_TAG: state.name,
        names.COMPARISON_TASK_TAG: state.task,
        names.COMPARISON_METRIC_TAG: state.metric,
        names.COMPARISON_SELECT_TAG: state.select,
        names.COMPARISON_FLOOR_TAG: json.dumps(state.floor),
        names.METHODS_TAG: ", ".join(dict.fromkeys(cell.label for cell in state.cells)),
    }


def cell_tags(cell: Cell) -> dict[str, str]:
    """What tells the cells of a comparison apart in the runs table."""
    grid = {f"{names.GRID_PREFIX}{field}": _text(value) for field, value in cell.grid.items()}
    return {names.LABEL_TAG: cell.label, names.CELL_TAG: cell.name, **grid}


def end_abandoned_run(base: LoadedRecipe, place: Path) -> None:
    """A cell that was killed before its first checkpoint begins anew, with a new run: the old one is over."""
    if latest_checkpoint(place) is not None or not (place / TRACKING_STATE_FILE).exists():
        return
    run_id = Record.load(place).state.run_id
    if run_id is None or not base.recipe.tracking.enabled:
        return
    uri = base.recipe.tracking.tracking_uri
    try:
        client = open_client(uri)
        if client.get_run(run_id).info.status == RUNNING:
            client.set_terminated(run_id, status="KILLED")
    except Exception as error:  # it only looks as if it ran on
        logger.warning("MLflow's run %s was not ended (%s)", run_id, first_line(error, uri))


def log_report(base: LoadedRecipe, report: Report, files: list[Path], tracker: Tracker, folder: Path) -> str | None:
    """Sends the report to the comparison's run, and each cell its steps to the target. Main rank only.

    Returns:
        The address of the comparison in MLflow's run table, where a server shows it.
    """
    for file in files:
        tracker.log_artifact(file, REPORT_FOLDER)
    best = report.entries[0] if report.entries else None
    if best is not None and best.score is not None:
        score = names.of_split(report.split, report.metric)
        tracker.set_tags({names.BEST_TAG: best.label, f"{names.BEST_TAG} {score}": f"{best.score.mean:.4f}"})
    records = []
    for name, step in report.steps_by_cell.items():
        record = Record.load(folder / CELLS_FOLDER / name)
        record.state.tags[names.STEPS_TO_TARGET_TAG] = "not reached" if step is None else str(step)
        record.save()
        records.append(record)
    if not base.recipe.tracking.enabled or tracker.run_id is None or tracker.run_id.startswith(LOCAL_PREFIX):
        return None
    uri = base.recipe.tracking.tracking_uri
    try:
        client = open_client(uri)
        for record in records:
            if record.state.run_id is not None:
                reached = record.state.tags[names.STEPS_TO_TARGET_TAG]
                client.set_tag(record.state.run_id, names.STEPS_TO_TARGET_TAG, reached)
        return _save_view(client, uri, report, tracker.run_id)
    except Exception as error:  # a server that is away costs a few tags, not the comparison
        logger.warning("MLflow did not take the comparison's view of its run table (%s)", first_line(error, uri))
        return None


def _save_view(client: MlflowClient, uri: str, report: Report, run_id: str) -> str | None:
    experiment, key = client.get_run(run_id).info.experiment_id, f"comparison-{run_id[:12]}"
    score = metric_column(names.compared_score(report.split, report.metric))
    grid = sorted({field for entry in report.entries for field in entry.grid})
    widths = {
        "Run Name": 260,
        tag_column(names.METHOD_TAG): 130,
        **{tag_column(names.GRID_PREFIX + field): 170 for field in grid},
        tag_column(names.MODEL_TAG): 140,
        tag_column(names.QUANTIZATION_TAG): 100,
        tag_column(names.RANKS_TAG): 65,
        score: 170,
        metric_column(names.COMPARE_TOKENS_PER_SECOND): 200,
        metric_column(names.COMPARE_PEAK_MEMORY_MB): 190,
        metric_column(names.COMPARE_TRAINABLE_PARAMETERS): 200,
        tag_column(names.STEPS_TO_TARGET_TAG): 130,
    }
    save_view(
        client,
        experiment,
        key,
        f"comparison {report.name}",
        widths=widths,
        runs=f"tags.`{names.PARENT_RUN_TAG}` = '{run_id}'",
        sort_by=score,
        ascending=report.metric in SMALLER_IS_BETTER,
    )
    return view_address(hide_password(uri), experiment, key) if uri.startswith("http") else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
