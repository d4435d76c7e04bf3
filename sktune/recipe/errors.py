"""What is said about a wrong recipe: every problem at once, each with its place, value and cure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sktune.errors import Problem, UserError

_LONGEST_VALUE = 80
_MISSING = object()


class RecipeError(UserError):
    """A recipe that cannot be used; its message lists every problem found.

    Attributes:
        source: The file (or `<python>`) the recipe came from.
        problems: All problems, located.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        body = "\n".join(str(problem) for problem in self.problems)
        super().__init__(f"{count} in recipe {source}\n{body}")


@dataclass
class Written:
    """A recipe as the user wrote it: overrides applied, `${NAME}` not yet replaced.

    Problems are shown with the text found here, so that an expanded secret never reaches a message.
    """

    source: str
    mapping: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    def locate(self, problem: Problem) -> Problem:
        """Fill in the place and the written value of a problem that does not have them yet."""
        return dataclasses.replace(
            problem,
            place=problem.place or self.place_of(problem.field),
            value=problem.value or self._value(problem.field),
        )

    def is_overridden(self, dotted: str) -> bool:
        """Whether an override gave the field, or what it is in."""
        parts = dotted.split(".")
        return any(".".join(parts[:end]) in self.overridden for end in range(1, len(parts) + 1))

    def place_of(self, dotted: str) -> str:
        """`file:line` of a field, or of what it is in."""
        parts = dotted.split(".") if dotted else []
        while parts:  # the nearest enclosing key that was written
            name = ".".join(parts)
            if name in self.overridden:
                return f"{self.source} (override)"
            if name in self.places:
                return self.places[name]
            parts.pop()
        return self.source

    def _value(self, dotted: str) -> str:
        if not dotted:
            return ""
        found: Any = self.mapping
        for part in dotted.split("."):
            if isinstance(found, Mapping):
                found = found.get(part, _MISSING)
            elif isinstance(found, (list, tuple)) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                found = _MISSING
        return "(not set)" if found is _MISSING else f"= {shown(found)}"


def shown(value: Any) -> str:
    """A value in a message: one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
