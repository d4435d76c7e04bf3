"""Names of models and data that come with sktune itself."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sktune.errors import Problem


def unknown_embedded(field: str, name: str, known: Sequence[str]) -> Problem:
    """The problem of an `embedded:` name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1)
    cure = f"did you mean {near[0]}?" if near else "use one of those, a hub id, or a local folder."
    return Problem(field, "nothing of this name comes with sktune", ", ".join(known), cure)
