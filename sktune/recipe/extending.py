"""`extends: other.yaml`: a recipe as another one with a few fields changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sktune.recipe.document import Document, read_document
from sktune.recipe.errors import Problem, RecipeError

KEY = "extends"


def read_extended(path: Path, seen: tuple[Path, ...] = ()) -> Document:
    """Reads a recipe file and those it extends, the nearest file's fields over the others'.

    Fields replace fields of the same section; another `method.name` replaces the whole section, since methods do
    not share their fields.

    Args:
        path: the file; what it extends is named relative to it.
        seen: the files that led here.

    Returns:
        The merged mapping without `extends`, and the place of every key in the file it was last written in.

    Raises:
        RecipeError: for a file that cannot be read, in it or on the way, or that extends itself.
    """
    document = read_document(path)
    if KEY not in document.mapping:
        return document
    name = document.mapping.pop(KEY)
    place = document.places.pop(KEY)
    trail = (*seen, path.resolve())
    if not isinstance(name, str):
        raise _refused(path, place, "must be one file name", f"for example `{KEY}: base.yaml`.")
    base = (path.parent / name).resolve()
    if base in trail:
        ring = " -> ".join(file.name for file in (*trail[trail.index(base) :], base))
        raise _refused(path, place, f"leads back to itself: {ring}", "let one of these files extend nothing.")
    if not base.is_file():
        raise _refused(path, place, f"names {name!r}, which is not there", f"a file seen from {path.parent}/.")
    below = read_extended(path.parent / name, trail)
    return Document(
        _merged(below.mapping, document.mapping),
        {**below.places, **document.places},
        [*below.problems, *document.problems],
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for section, fields in above.items():
        old = merged.get(section)
        if not isinstance(old, Mapping) or not isinstance(fields, Mapping):
            merged[section] = fields
        elif section == "method" and fields.get("name", old.get("name")) != old.get("name"):
            merged[section] = dict(fields)
        else:
            merged[section] = {**old, **fields}
    return merged


def _refused(path: Path, place: str, message: str, cure: str) -> RecipeError:
    problem = Problem(KEY, message, "a recipe file", cure)
    return RecipeError(str(path), [dataclasses.replace(problem, place=place)])
