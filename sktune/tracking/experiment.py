"""The MLflow experiment a run belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sktune.errors import UserError
from sktune.tracking import names
from sktune.tracking.names import sanitise_name
from sktune.tracking.uri import sqlite_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment `name`, created where missing.

    Raises:
        UserError: the experiment has been deleted in MLflow.
        MlflowException: the server does not answer, or refuses the name.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(
                name, artifact_location(name, uri), {names.EXPERIMENT_KIND_TAG: names.TRAINING}
            )
        except MlflowException as error:  # another run was a moment faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise error
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment_name: the experiment {name!r} has been deleted in MLflow; restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}) or choose another name."
        )
    return experiment.experiment_id


def artifact_location(name: str, uri: str) -> str | None:
    """Beside a sqlite database, where MLflow would take the current folder; else None, the server's own."""
    database = sqlite_path(uri)
    if database is None:
        return None
    return (database.parent / "mlartifacts" / sanitise_name(name).replace("/", "_")).as_uri()
