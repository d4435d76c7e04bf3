"""Rules between fields and sections, beyond what the schema says of each field alone.

A rule is a function whose parameters are named after the sections it reads and which yields a `Problem` for
whatever is wrong. It runs when all of its sections passed the schema. An option that was given and would
silently do nothing is a problem too, so that nobody tunes a knob that is not connected.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping

from sktune.errors import Problem
from sktune.methods.config import MethodConfig
from sktune.recipe.rules import compare, data, method, model, training
from sktune.sections import Section
from sktune.tasks.config import TaskConfig

Rule = Callable[..., Iterator[Problem]]

RULES: tuple[Rule, ...] = (
    *model.RULES,
    *method.RULES,
    *data.RULES,
    *training.RULES,
    *compare.RULES,
)


def broken_rules(sections: Mapping[str, Section]) -> list[Problem]:
    """Run the rules of the method and the task, and every rule whose sections are all present."""
    problems: list[Problem] = []
    if isinstance(own := sections.get("method"), MethodConfig):
        problems += own.problems(sections.get("task"), sections.get("data"))  # type: ignore[arg-type]
    if isinstance(task := sections.get("task"), TaskConfig):
        problems += task.problems(sections.get("data"))  # type: ignore[arg-type]
    for rule in RULES:
        names = list(inspect.signature(rule).parameters)
        if all(name in sections for name in names):
            problems += rule(*(sections[name] for name in names))
    return problems
