"""Errors that the user can mend, and what is wrong with a field that the user wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PASSWORD = re.compile(r"(?P<user>://[^\s/:@'\"]*):[^\s'\"]*@")
_SECRET = re.compile(r"(?P<name>[?&](?:password|passwd|pwd|token|secret|api_?key)=)[^&\s'\"]*", re.IGNORECASE)


def hide_password(text: str) -> str:
    """The text with the password of every URI in it replaced by `***`."""
    return _SECRET.sub(r"\g<name>***", _PASSWORD.sub(r"\g<user>:***@", text))


def lacks_password(uri: str) -> bool:
    """Whether `hide_password` has taken something out of it."""
    return ":***@" in uri or "=***" in uri


class UserError(ValueError):
    """Something the user can mend: its message says what is wrong where, and the cure.

    The command line shows it as one message. Every other ValueError is a defect of sktune, and shows its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, or its type where none does."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return hide_password(line)


def named_line(error: BaseException) -> str:
    """An error's type and `first_line`, as a tag or a table shows it."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


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
        idle: Whether all that is wrong is that the field, which was given, does nothing.
    """

    field: str
    message: str
    allowed: str = ""
    cure: str = ""
    value: str = ""
    place: str = ""
    idle: bool = False

    def __str__(self) -> str:
        what = f"{self.field} {self.value}".strip()
        lines = [f"{self.place}: {what}" if what else f"{self.place}:", f"    {self.message}"]
        if self.allowed:
            lines.append(f"    allowed: {self.allowed}")
        if self.cure:
            lines.append(f"    cure: {self.cure}")
        return "\n".join(lines)
