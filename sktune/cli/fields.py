"""The reference of a recipe's fields, made of its schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
from pydantic.fields import FieldInfo

from sktune.recipe.keys import SECTIONS, allowed_in, variants
from sktune.sections import Section

_HEAD = """# The fields of a recipe

Made of the schema by `sktune list fields --format markdown > docs/fields.md`; a field without a default must be given.
"""


class _Group(NamedTuple):
    """A section, or a variant of one."""

    title: str
    section: str
    cls: type[Section]


def as_lines(only: str | None) -> Iterator[str]:
    """A line for each field: name, what it takes, default, help.

    Args:
        only: a section (`training`) or a variant of one (`method.lora`); None: all of them.

    Raises:
        click.UsageError: for a section that there is not.
    """
    for group in _groups(only):
        for key, info in group.cls.model_fields.items():
            name = f"{group.title if '.' in group.title else group.section}.{key}"
            yield f"{name}  [{allowed_in(info)}; {_default(info)}]  {info.description or ''}".rstrip()


def as_markdown(only: str | None) -> str:
    """The same as tables, a heading for each section; see `as_lines`."""
    parts = [_HEAD] if only is None else []
    for group in _groups(only):
        rows = [
            f"| `{key}` | {_cell(allowed_in(info))} | {_cell(_default(info))} | {_cell(info.description or '')} |"
            for key, info in group.cls.model_fields.items()
        ]
        doc = " ".join((group.cls.__doc__ or "").split("\n\n")[0].split())
        table = ["| field | allowed | default | what it does |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## `{group.title}`", "", doc, "", *table, ""]))
    return "\n".join(parts)


def _groups(only: str | None) -> list[_Group]:
    every = [
        _Group(f"{section}.{name}" if name else section, section, cls)
        for section in SECTIONS
        for name, cls in variants(section).items()
    ]
    chosen = [group for group in every if only in (None, group.title, group.section)]
    if not chosen:
        names = list(dict.fromkeys([*SECTIONS, *(group.title for group in every)]))
        near = difflib.get_close_matches(str(only), names, n=1)
        cure = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
        raise click.UsageError(f"{only!r} is no section of a recipe; {cure}", click.get_current_context())
    return chosen


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value: Any = info.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple | dict):
        return "[]" if value == () else "{}" if value == {} else str(value)
    return repr(value).strip("'") if isinstance(value, str) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
