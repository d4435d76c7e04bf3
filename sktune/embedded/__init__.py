"""Models and data by name: a miniature that comes with sktune, and real ones that `sktune fetch` brings."""

from __future__ import annotations

from pathlib import Path

from sktune.embedded.catalog import CATALOG, PREFIX, Kind
from sktune.errors import UserError

_FIELDS: dict[Kind, str] = {"model": "model.name_or_path", "data": "data.path"}


def is_embedded(name: str) -> bool:
    """True where a recipe's model or data name is one of the catalog's."""
    return name.startswith(PREFIX)


def resolve(name: str, kind: Kind | None = None) -> Path:
    """The folder behind an `embedded:...` name; of a model that is one file, that file.

    Args:
        name: with its prefix.
        kind: what it must be; None for either.

    Raises:
        UserError: where there is no such name, or it was not fetched, or is missing from the installation.
    """
    allowed = [PREFIX + key for key, item in CATALOG.items() if kind in (None, item.kind)]
    if name not in allowed:
        raise UserError(f"{name!r} names no embedded {kind or 'model or data'}; allowed: {', '.join(allowed)}")
    item = CATALOG[name.removeprefix(PREFIX)]
    if not item.path.exists():
        if item.archive is None:
            cure = "rebuild it with `python -m sktune.embedded.build`"
            raise UserError(f"{name!r} should be in {item.path}, which does not exist; {cure}")
        raise UserError(f"{_FIELDS[item.kind]}: {_not_fetched([name])}")
    return item.path


def model_location(name: str) -> str:
    """The folder or file of an `embedded:` model; hub ids as they are, and folders too, but for a leading `~`.

    Raises:
        UserError: see `resolve`.
    """
    if is_embedded(name):
        return str(resolve(name, "model"))
    return str(Path(name).expanduser()) if name.startswith("~") else name


def must_be_here(name: str) -> bool:
    """Whether a name can only be a path of this machine, no hub id: `./x`, `~/x`, `/x`, `a/b/c`, `runs/`."""
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or name.endswith("/")


def is_fetched(name: str) -> bool:
    """Whether what an `embedded:` name stands for is on this machine; True for names that do not exist."""
    item = CATALOG.get(name.removeprefix(PREFIX))
    return item is None or item.path.exists()


def check_fetched(*names: str | None) -> None:
    """Checks at once that all `embedded:` names among those of a recipe are on this machine.

    Raises:
        UserError: with the one command that fetches those which are not.
    """
    given = [name for name in dict.fromkeys(names) if name is not None and is_embedded(name)]
    if absent := [name for name in given if not is_fetched(name)]:
        raise UserError(_not_fetched(absent))


def _not_fetched(names: list[str]) -> str:
    verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
    return f"{' and '.join(names)} {verb} not on this machine; fetch {them} with `sktune fetch {' '.join(names)}`"
