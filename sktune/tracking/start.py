"""Starting, or continuing, the tracking of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sktune.errors import UserError, hide_password
from sktune.files import TRACKING_RECIPE_FILE, write_whole
from sktune.recipe.document import FORMAT, FORMAT_KEY, to_yaml
from sktune.recipe.environment import MLFLOW_VARIABLES, mlflow_reference
from sktune.sections import TrackingSection
from sktune.tracking import names
from sktune.tracking.facts import system_tags
from sktune.tracking.interface import NullTracker, Tracker
from sktune.tracking.record import Record
from sktune.tracking.store import MlflowRun
from sktune.tracking.tracker import RunTracker
from sktune.tracking.uri import replayable_uri

logger = logging.getLogger(__name__)


def start_tracking(
    tracking: TrackingSection,
    *,
    recipe_params: Mapping[str, object],
    tags: Mapping[str, str],
    run_name: str,
    run_id: str | None,
    output_dir: Path,
    is_main: bool,
) -> Tracker:
    """Start (or continue) the MLflow run of a training run.

    Args:
        tracking: the recipe's section.
        recipe_params: the recipe as written (before environment variables are filled in), nested or dotted;
            becomes the params, and as a whole the artifact `recipe.yaml`.
        tags: tags besides the section's own and the system's.
        run_name: used where `tracking.run_name` is null.
        run_id: `Tracker.run_id` of an earlier part of this run, to continue it; None for a new run, which
            replaces the record of an older one in `output_dir`.
        output_dir: the run's folder; gets `metrics.jsonl` and `tracking/`, also without MLflow.
        is_main: whether this rank tracks; the others get a tracker that does nothing.

    Returns:
        The tracker. A server that does not answer is a warning, never an error.

    Raises:
        UserError: the tracking URI cannot be used, or its store refused the run.
    """
    if not is_main:
        return NullTracker()
    if tracking.enabled:
        _say_what_the_environment_decides(tracking, recipe_params)
    name = tracking.run_name or run_name
    uri = tracking.tracking_uri
    if run_id is None:
        record = Record.create(output_dir, tracking.experiment_name, name, replayable_uri(uri))
    else:
        record = Record.resume(output_dir, run_id, tracking.experiment_name, name, replayable_uri(uri))
    record.add_params(names.as_params(recipe_params))
    record.state.tags.update(names.as_tags({**system_tags(), **tracking.tags, **tags}))
    record.save()
    recipe_file = output_dir / TRACKING_RECIPE_FILE
    write_whole(recipe_file, to_yaml({FORMAT_KEY: FORMAT, **_plain(recipe_params)}))
    record.add_artifact(recipe_file, None)
    record.save()
    try:
        mlflow_run = MlflowRun(uri, record) if tracking.enabled else None
    except UserError:
        record.end("FAILED")
        raise
    tracker = RunTracker(record, mlflow_run, uri)
    tracker.attach()
    if tracking.system_metrics:
        tracker.watch_system()
    return tracker


def _say_what_the_environment_decides(tracking: TrackingSection, recipe_params: Mapping[str, Any]) -> None:
    section = recipe_params.get("tracking") or {}
    for key, variable in MLFLOW_VARIABLES.items():
        if section.get(key) == mlflow_reference(key):
            value = hide_password(str(getattr(tracking, key)))
            logger.info("tracking.%s: %s, as %s says and the recipe does not", key, value, variable)


def _plain(value: Any) -> Any:
    """Mappings and sequences as dict and list, which safe YAML knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
