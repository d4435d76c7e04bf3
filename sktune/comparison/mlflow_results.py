"""The same results, read from the runs of an MLflow experiment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sktune.comparison.results import CellState, ComparisonState, Status
from sktune.errors import UserError, hide_password
from sktune.tracking import names
from sktune.tracking.uri import first_line, open_client

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_STATUS: dict[str, Status] = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "planned"}


def read_experiment(name: str, tracking_uri: str) -> ComparisonState:
    """The newest comparison of an experiment.

    Raises:
        UserError: the store does not answer, or holds no such experiment or comparison.
    """
    client, shown = open_client(tracking_uri), hide_password(tracking_uri)
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            known = ", ".join(repr(other.name) for other in client.search_experiments())
            raise UserError(f"no experiment {name!r} at {shown}; there are {known or 'none'}")
        parents = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{names.COMPARISON_TAG}` != ''",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if not parents:
            raise UserError(f"the experiment {name!r} holds no comparison; sktune compare makes one")
        return _results(client, parents[0], experiment.experiment_id)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--tracking-uri: {shown} does not answer ({first_line(error, tracking_uri)})") from error


def _results(client: MlflowClient, parent: Run, experiment: str) -> ComparisonState:
    tags = parent.data.tags
    metric = tags[names.COMPARISON_METRIC_TAG]
    mine = f"tags.`{names.PARENT_RUN_TAG}` = '{parent.info.run_id}'"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment], filter_string=mine, order_by=["attributes.start_time ASC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            break
    # A cell that was begun anew has two runs.
    newest = {run.data.tags[names.CELL_TAG]: run for run in runs if names.CELL_TAG in run.data.tags}
    return ComparisonState(
        recipe="",
        overrides=[],
        name=tags[names.COMPARISON_TAG],
        task=tags[names.COMPARISON_TASK_TAG],
        metric=metric,
        select=tags[names.COMPARISON_SELECT_TAG],
        cells=[_cell(client, run, metric) for run in newest.values()],
        floor=json.loads(tags[names.COMPARISON_FLOOR_TAG]),
        environment={"device": tags.get(names.DEVICE_TAG, "?"), "ranks": tags.get(names.RANKS_TAG, "?")},
    )


def _cell(client: MlflowClient, run: Run, metric: str) -> CellState:
    tags, metrics = run.data.tags, run.data.metrics
    prefix = names.FINAL_PREFIX
    history = client.get_metric_history(run.info.run_id, names.of_split("validation", metric))
    grid: dict[str, Any] = {}
    for tag, value in tags.items():
        if tag.startswith(names.GRID_PREFIX):
            try:
                grid[tag.removeprefix(names.GRID_PREFIX)] = json.loads(value)
            except ValueError:
                grid[tag.removeprefix(names.GRID_PREFIX)] = value
    return CellState(
        name=tags[names.CELL_TAG],
        label=tags[names.LABEL_TAG],
        method=tags[names.METHOD_TAG],
        grid=grid,
        seed=int(tags[names.SEED_TAG]),
        status=_STATUS.get(run.info.status, "failed"),
        error=tags.get(names.ERROR_TAG),
        summary={key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)},
        curve=tuple(sorted((point.step, point.value) for point in history)),
    )
