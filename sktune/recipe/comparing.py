"""The method section that a label of `compare.methods`, or a bare name, stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sktune.recipe.keys import SECTIONS

METHOD_NAMES: tuple[str, ...] = tuple(SECTIONS["method"])


def known_labels(methods: Iterable[str]) -> list[str]:
    """What a comparison can be asked for: the labels of `compare.methods`, then the methods' own names."""
    return list(dict.fromkeys([*methods, *METHOD_NAMES]))


def compared_method(label: str, fields: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """A whole method section, not yet checked.

    Args:
        label: how the comparison calls it; the method's name too, unless `fields` gives one.
        fields: what is written below the label.
        own: the recipe's method section: what a section of the same method leaves out is as there, and a method that
            needs a text and has none takes its text.
    """
    section = {"name": label, **fields}
    if isinstance(own, Mapping) and own.get("name") == section["name"]:
        section = {**own, **section}
    cls = SECTIONS["method"].get(str(section["name"]))
    takes_text = cls is not None and "text" in cls.model_fields
    needs_text = (
        cls is not None and takes_text and (cls.model_fields["text"].is_required() or section.get("init") == "text")
    )
    if needs_text and "text" not in section and isinstance(own, Mapping) and own.get("text"):
        section["text"] = own["text"]
    return section
