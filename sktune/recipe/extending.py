"""`extends: other.yaml`: a recipe as another one, or several, with a few fields changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sktune.errors import Problem
from sktune.recipe.document import Document, read_document
from sktune.recipe.errors import RecipeError

KEY = "extends"


def read_extended(path: Path, seen: tuple[Path, ...] = ()) -> Document:
    """Reads a recipe file and those it extends: its own fields over theirs, a later one's over an earlier one's.

    Fields replace fields of the same section; another `method.name` replaces the whole section, since methods do
    not share their fields; `compare.methods` is added to, label by label, and a label given as null is left out.

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
    names = document.mapping.pop(KEY)
    place = document.places.pop(KEY)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _refused(path, place, "must be a file name or a list of them", f"for example `{KEY}: base.yaml`.")
    result = Document({})
    for name in names:
        result = _over(result, _base(path, name, place, (*seen, path.resolve())))
    return _over(result, document)


def _base(path: Path, name: str, place: str, trail: tuple[Path, ...]) -> Document:
    base = (path.parent / name).resolve()
    if base in trail:
        ring = " -> ".join(file.name for file in (*trail[trail.index(base) :], base))
        raise _refused(path, place, f"leads back to itself: {ring}", "let one of these files extend nothing.")
    if not base.is_file():
        raise _refused(path, place, f"names {name!r}, which is not there", f"name a file seen from {path.parent}/.")
    return read_extended(path.parent / name, trail)


def _over(below: Document, above: Document) -> Document:
    return Document(
        _merged(below.mapping, above.mapping),
        {**below.places, **above.places},
        [*below.problems, *above.problems],
        above.written_whole,
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
            if section == "compare" and all(isinstance(part.get("methods"), Mapping) for part in (old, fields)):
                methods = {**old["methods"], **fields["methods"]}
                merged[section]["methods"] = {label: own for label, own in methods.items() if own is not None}
    return merged


def _refused(path: Path, place: str, message: str, cure: str) -> RecipeError:
    problem = Problem(KEY, message, "recipe files", cure)
    return RecipeError(str(path), [dataclasses.replace(problem, place=place)])
