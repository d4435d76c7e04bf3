"""The method section that a label of `compare.methods`, or a bare name, stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sktune.methods import METHODS


def known_labels(methods: Iterable[str]) -> list[str]:
    """What a comparison can be asked for: the labels of `compare.methods`, then the methods' own names."""
    return list(dict.fromkeys([*methods, *METHODS]))


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
    if "text" not in section and isinstance(own, Mapping) and own.get("text"):
        name = str(section["name"])
        if name in METHODS and METHODS.config(name).wants_text(section):
            section["text"] = own["text"]
    return section
