"""A model of MLflow's, beside the run that it came from, and in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sktune.errors import UserError, hide_password, lacks_password
from sktune.recipe import Recipe
from sktune.tracking import names
from sktune.tracking.record import Record
from sktune.tracking.store import MlflowRun
from sktune.tracking.uri import first_line, open_client

URI = "tracking.tracking_uri"


def register(run: Path, folder: Path, name: str, recipe: Recipe, overrides: Sequence[str]) -> str:
    """Uploads a folder as a model of the run, and makes it the next version of a registered model.

    Args:
        run: the run's folder.
        folder: that MLflow can load.
        name: of the registered model; made where there is none.
        recipe: of the run, changed by the overrides.
        overrides: one may say where MLflow is; else it is where the run was tracked.

    Returns:
        The version.

    Raises:
        UserError: where the run was not tracked, or its MLflow does not take the model.
    """
    record = Record.load(run)
    said = any(override.partition("=")[0].strip() in ("tracking", URI) for override in overrides)
    uri = recipe.tracking.tracking_uri if said else record.state.tracking_uri
    if record.state.run_id is None:
        raise UserError(
            f"--register: MLflow does not know the run of {run}; upload it with: python -m sktune.tracking.replay {run}"
        )
    if lacks_password(uri):
        raise UserError(f"--register: {uri} was written down without its password; give it: {URI}=...")
    step = int(record.state.models[-1].step if record.state.models else _last_step(record))
    entry = record.add_model(folder, step)
    try:
        MlflowRun(uri, record).flush()
        assert entry.model_id is not None
        return _next_version(uri, name, entry.model_id, record.run_id)
    except UserError:
        raise
    except Exception as error:  # whatever a network, a proxy or a database can come up with
        raise UserError(
            f"--register: MLflow at {hide_password(uri)} did not take the model ({first_line(error, uri)}); it is in "
            f"{folder}"
        ) from error


def _next_version(uri: str, name: str, model_id: str, run_id: str) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A registry in a database looks for the model where this process tracks, whatever the client's address is.
    # Setting it sets MLFLOW_TRACKING_URI too, which later recipes of this process would go by; None unsets both.
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        version = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    finally:
        mlflow.set_tracking_uri(before)
    return str(version.version)


def _last_step(record: Record) -> int:
    return max((point.step for point in record.points() if point.name.startswith(names.FINAL_PREFIX)), default=0)
