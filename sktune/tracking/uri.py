"""Tracking URIs: what can be used, clear errors for what cannot, and no passwords in messages."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sktune import errors
from sktune.errors import UserError, hide_password, lacks_password
from sktune.tracking.database import made_once

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FIELD = "tracking.tracking_uri"
USABLE = "sqlite:///folder/mlflow.db, http(s)://host:port, postgresql://..., mysql://..., databricks"

# MLflow's own defaults block a training step for four minutes when its server is away. The record keeps
# what could not be sent, so a single quick retry is enough. A value set by the user stays.
HTTP_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def open_client(uri: str) -> MlflowClient:
    """An MLflow client; a sqlite database (and its folder) is created where missing.

    Args:
        uri: value of `tracking.tracking_uri`.

    Raises:
        UserError: an unknown scheme, a plain folder (MLflow 3 refuses it), a database that cannot be
            opened, or a missing database driver. A server that is down is not noticed here.
    """
    scheme, shown = _scheme(uri), hide_password(uri)
    if lacks_password(uri):
        raise UserError(
            f"{FIELD}: {shown!r} is an address whose password was not written down; give it again, best as a variable: "
            f"{FIELD}='${{MLFLOW_TRACKING_URI}}'."
        )
    if scheme in ("", "file"):
        folder = re.sub(r"^file:(//)?", "", uri.strip()).rstrip("/")
        advice = f"sqlite:///{folder}/mlflow.db" if folder else "sqlite:///mlflow.db"
        raise UserError(
            f"{FIELD}: {shown!r} is a plain folder, and MLflow 3 no longer logs to folders; "
            f"write {advice} (a database file), or one of: {USABLE}."
        )
    if scheme in ("http", "https") and not urlsplit(uri).hostname:
        raise UserError(f"{FIELD}: {shown!r} names no host; write for example http://localhost:5000.")
    for name, value in HTTP_DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Schema migrations of a new database, announced line by line.
    for name in ("alembic", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)

    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
    from sqlalchemy.exc import SQLAlchemyError

    database = sqlite_path(uri)
    try:
        if database is None:
            return MlflowClient(tracking_uri=uri)
        with made_once(database, lambda path: MlflowClient(tracking_uri=f"sqlite:///{path}")):
            return MlflowClient(tracking_uri=uri)
    except UnsupportedModelRegistryStoreURIException:
        raise UserError(f"{FIELD}: {shown!r}: MLflow knows no {scheme!r} store; use one of: {USABLE}.") from None
    except ImportError as error:
        raise UserError(f"{FIELD}: {shown!r} needs the database driver {error.name!r}; install it with pip.") from error
    except (OSError, SQLAlchemyError, CommandError, MlflowException) as error:
        raise UserError(
            f"{FIELD}: {shown!r} cannot be opened ({first_line(error, uri)}); name a place that can be "
            f"written to, or set tracking.enabled=false."
        ) from error


def sqlite_path(uri: str) -> Path | None:
    """Absolute path of the database file of a sqlite URI; None for other URIs and in-memory databases."""
    if not _scheme(uri).startswith("sqlite"):
        return None
    path = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    return None if path in ("", ":memory:") else Path(path).absolute()


def replayable_uri(uri: str) -> str:
    """The URI as it may be written down: a sqlite path absolute, a password hidden."""
    database = sqlite_path(uri)
    return f"{uri.partition('://')[0]}:///{database}" if database else hide_password(uri)


def first_line(error: BaseException, uri: str = "") -> str:
    """First line of an error's message, or its type where it has none; without the URI's password."""
    line = errors.first_line(error)
    return hide_password(line.replace(uri, hide_password(uri)) if uri else line)


def is_refusal(error: Exception) -> bool:
    """Whether the store said no (credentials, address, experiment), so that waiting for it is in vain."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ValueError) or "credential" in f"{type(error).__name__} {error}".lower():
        return True
    return isinstance(error, MlflowException) and error.get_http_status_code() in (400, 401, 403, 404)


def _scheme(uri: str) -> str:
    if uri.startswith("databricks"):
        return "databricks"
    return uri.partition(":")[0].partition("+")[0].lower() if re.match(r"[A-Za-z][\w+.-]+:", uri) else ""
