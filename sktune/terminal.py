r"""What reaches a terminal: the one place where messages, tables and answers are printed.

Names of labels, files and columns, and what a model writes, come with data of others. They must not move the cursor,
change colours or write over what was printed before, so control characters are printed as escapes (`\x1b`).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import TYPE_CHECKING, Any

from sktune.errors import hide_password

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile(
    # C0 but for line feeds and tabs, DEL and C1; marks that turn round the order in which text is shown; halves of a
    # character, which no terminal takes.
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text with control characters as escapes: `\x1b`, `\u202e`; line feeds and tabs stay."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def say(text: object = "", *, end: str = "\n", flush: bool = False) -> None:
    """Prints a result on standard output."""
    print(printable(str(text)), end=end, flush=flush)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a result as JSON, which reads back as it was."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    print(_CONTROLS.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def complain(text: object) -> None:
    """Prints a message on standard error, without passwords."""
    print(printable(hide_password(str(text))), file=sys.stderr, flush=True)


class LogFormatter(logging.Formatter):
    """Log lines, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(hide_password(super().format(record)))


def make_console(**options: Any) -> Console:
    """A console of rich for tables."""
    from collections.abc import Iterable

    from rich import console as rich
    from rich.segment import Segment

    class Terminal(rich.Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    return Terminal(**options)
