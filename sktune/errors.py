"""Errors that the user can mend, and what is wrong with a field that the user wrote."""

from __future__ import annotations

from dataclasses import dataclass


class UserError(ValueError):
    """Something the user can mend: its message says what is wrong where, and the cure.

    The command line shows it as one message. Every other ValueError is a defect of sktune, and shows its traceback.
    """


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one field.

    Args:
        field: Dotted name as the user writes it, `training.learning_rate`; empty for the whole file.
        message: What is wrong.
        allowed: What may stand there.
        cure: What to do.
        value: The value as written, filled in by `Written.locate`.
        place: `file:line`, filled in by `Written.locate`.
    """

    field: str
    message: str
    allowed: str = ""
    cure: str = ""
    value: str = ""
    place: str = ""

    def __str__(self) -> str:
        what = f"{self.field} {self.value}".strip()
        lines = [f"{self.place}: {what}" if what else f"{self.place}:", f"    {self.message}"]
        if self.allowed:
            lines.append(f"    allowed: {self.allowed}")
        if self.cure:
            lines.append(f"    cure: {self.cure}")
        return "\n".join(lines)
