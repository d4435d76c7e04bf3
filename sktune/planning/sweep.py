"""A grid of plans: bits, ranks, gradient checkpointing, batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from sktune.planning.changes import problems_of, with_bits, with_fields
from sktune.planning.planned_bytes import Plan
from sktune.planning.planner import plan
from sktune.recipe.recipe import Recipe

Values = tuple[int, ...]
_Change = Callable[[Recipe, int], Recipe]
AXES: dict[str, tuple[Values, _Change]] = {
    "bits": ((16, 8, 4), with_bits),
    "ranks": ((1, 2, 4, 8), lambda recipe, _: recipe),
    "checkpointing": (
        (0, 1),
        lambda recipe, on: with_fields(recipe, "training", gradient_checkpointing=bool(on)),
    ),
    "batch": (
        (1, 2, 4, 8, 16, 32),
        lambda recipe, rows: with_fields(recipe, "training", per_device_train_batch_size=rows),
    ),
}
"""Name of an axis -> its values, and how a recipe gets one."""


def parse_axes(text: str) -> tuple[str, ...]:
    """Names of axes, separated by commas.

    Raises:
        ValueError: for a name that is none.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in AXES or names.count(name) > 1:
            raise ValueError(f"--sweep: {name!r} in {text!r}; allowed: each of {', '.join(AXES)} at most once")
    return names


def sweep(recipe: Recipe, axes: tuple[str, ...], *, ranks: int, memory_bytes: int | None) -> list[Plan]:
    """A plan for each combination, the last axis running fastest.

    Raises:
        ValueError: for whatever the user can correct.
    """
    plans = []
    for values in product(*(_values(axis, ranks) for axis in axes)):
        changed, count = recipe, ranks
        for axis, value in zip(axes, values, strict=True):
            count = value if axis == "ranks" else count
            changed = AXES[axis][1](changed, value)
        if problems := problems_of(changed):
            point = ", ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True))
            raise ValueError(f"--sweep: the recipe cannot be at {point}:\n" + "\n".join(problems))
        plans.append(plan(changed, ranks=count, memory_bytes=memory_bytes, compare_checkpointing=False))
    return plans


def _values(axis: str, ranks: int) -> Values:
    values = AXES[axis][0]
    return tuple(sorted({*values, ranks})) if axis == "ranks" else values
