"""A named view of MLflow's run table: which columns, in what order and width, of which runs.

MLflow's pages keep such views as tags of the experiment and list them in the menu `Views`. The form of the tag is
MLflow's own and nothing it promises; where another version does not know it, the table just looks as it always does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_TAG = "mlflow.sharedViewState."
_RUN_NAME = "attributes.`Run Name`"


def metric_column(name: str) -> str:
    """How a view calls a metric."""
    return f"metrics.`{name}`"


def tag_column(name: str) -> str:
    """How a view calls a tag."""
    return f"tags.`{name}`"


def save_view(
    client: MlflowClient,
    experiment_id: str,
    key: str,
    name: str,
    *,
    widths: Mapping[str, int],
    runs: str,
    sort_by: str,
    ascending: bool,
) -> None:
    """Saves a view, or replaces the one of the same key.

    Args:
        client: of the store.
        experiment_id: whose runs are shown.
        key: part of the view's address, see `view_address`.
        name: in the menu.
        widths: column -> pixels, in the order of the table; the run's name under its own name `Run Name`.
        runs: a search filter.
        sort_by: a column. Runs sorted by a metric are not folded under their parent.
        ascending: smallest first.
    """
    columns = {_RUN_NAME if column == "Run Name" else column: width for column, width in widths.items()}
    state = {
        "selectedColumns": [column for column in columns if column != _RUN_NAME],
        "columnOrder": list(columns),
        "columnWidths": columns,
        "searchFilter": runs,
        "orderByKey": sort_by,
        "orderByAsc": ascending,
    }
    now = int(time.time() * 1000)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    client.set_experiment_tag(experiment_id, _TAG + key, json.dumps(view))


def view_address(uri: str, experiment_id: str, key: str) -> str:
    """Where a server shows the view."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={key}"
