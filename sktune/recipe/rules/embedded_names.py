"""`embedded:` names of models and data."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.embedded import PREFIX
from sktune.embedded.catalog import CATALOG, Kind, names_of, nearest
from sktune.errors import Problem


def embedded_names_exist(field: str, name: str, kind: Kind) -> Iterator[Problem]:
    """The problem of an `embedded:` name that does not exist or is no such thing, with the nearest one that fits.

    Whether it was fetched is not looked at: a recipe can be checked anywhere.
    """
    known = names_of(kind)
    if not name.startswith(PREFIX) or name in known:
        return
    other = CATALOG.get(name.removeprefix(PREFIX))
    if other is None:
        message = "sktune knows nothing of this name"
    else:
        message = f"is {'a model' if other.kind == 'model' else 'data'} ({other.about}), no {kind}"
    near = nearest(name, known) if other is None else None
    cure = f"did you mean {near}?" if near else "use one of those, a hub id, or a local folder."
    yield Problem(field, message, ", ".join(known), cure)
