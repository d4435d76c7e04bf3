"""Cells of a table as texts: what is no text is refused by row, not written out as Python would print it."""

from __future__ import annotations

import math
from typing import Any

from sktune.errors import UserError

_NO_TEXTS = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
_CURES = {
    "a list": "write a row for each of them, or join them to one text",
    "an object": "name the field that is meant (data.text_column=translation.en)",
    "bytes": "write them as a text",
}


def as_text(value: Any, where: str, *, what: str = "one text is needed") -> str | None:
    """A cell as a text; numbers and truth values as they are written; None for null and for not a number.

    Args:
        value: the cell.
        where: file, row and field, for messages.
        what: what the cell should be, for messages.

    Raises:
        UserError: for a list, an object, and bytes.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    kind = next((name for cls, name in _NO_TEXTS.items() if isinstance(value, cls)), None)
    if kind is None:
        return str(value)  # numbers, truth values, dates
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise UserError(f"{where}: {what}, and this is {kind} ({shown}); {_CURES[kind]}.")
