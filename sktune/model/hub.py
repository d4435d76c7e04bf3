"""Adapters on a model hub: an adapter's folder is a repository."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from sktune.errors import UserError
from sktune.files import ADAPTER_CARD, ADAPTER_README, ADAPTER_WEIGHTS, RECIPE_FILE

FILES = (ADAPTER_WEIGHTS, ADAPTER_CARD, ADAPTER_README, RECIPE_FILE)
_ID = re.compile(r"[\w.-]+/[\w.-]+")

_OF_THE_CONNECTION: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
"""OSError, and what the hub's HTTP client raises: httpx, in later versions httpx2."""

T = TypeVar("T")


def is_repository(name: str | Path) -> bool:
    """Whether a name that is no folder here can be one of a hub, `user/name`."""
    return not Path(name).exists() and _ID.fullmatch(str(name)) is not None


def download_adapter(name: str, revision: str | None = None) -> Path:
    """The folder of an adapter in the hub's cache, downloaded where it is not there.

    Raises:
        UserError: where there is no such repository, or the hub cannot be reached.
    """
    folder: str = _asking(
        f"{name}: no folder here, and", lambda: snapshot_download(name, revision=revision, allow_patterns=list(FILES))
    )
    return Path(folder)


def push(
    save: Callable[[Path], Any],
    name: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str,
) -> str:
    """Makes a repository of an adapter, or a new commit in it; returns the commit's address.

    Args:
        save: writes the adapter into a folder that it is given.
        name: of the repository, `user/name`.
        private: of a new repository; None: as the account says.
        token: of the account; None: the one that `hf auth login` has kept.
        revision: branch; None: the main one.
        message: of the commit.

    Raises:
        UserError: where the hub refuses it or cannot be reached.
    """
    api = HfApi(token=token)

    def upload() -> str:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message=message, allow_patterns=list(FILES)
            )
        return str(done.commit_url)

    return _asking(f"{name}:", upload)


def _asking(what: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except RepositoryNotFoundError:
        raise UserError(f"{what} no repository on the hub that your account can read; see `hf auth login`") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{what} the hub refuses it: {str(error).strip().splitlines()[-1]}") from None
    except _OF_THE_CONNECTION as error:
        raise UserError(f"{what} the hub cannot be reached: {str(error).strip().splitlines()[0]}") from None
