"""Rules of `compare`: labels that can be named, and a grid of fields that may differ between runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from sktune.errors import Problem
from sktune.recipe.comparing import known_labels
from sktune.recipe.keys import SECTIONS, field_info, suggest
from sktune.sections import CompareSection

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*$")
_FIXED_SECTIONS = ("method", "tracking", "output", "compare")
_FIXED_FIELDS = ("training.seed", "training.resume")


def labels_are_names(compare: CompareSection) -> Iterator[Problem]:
    for label in compare.methods:
        if not LABEL.match(label):
            name, _, rest = label.partition(".")
            yield Problem(
                f"compare.methods.{label}",
                "is no label: it names folders and runs",
                "letters, digits, _, + and -",
                f"write compare.methods.{name}={{{rest}: ...}} for the whole entry." if rest else "rename it.",
            )


def grid_names_fields_that_may_differ(compare: CompareSection) -> Iterator[Problem]:
    for dotted in compare.grid:
        section, _, key = dotted.partition(".")
        where = f"compare.grid.{dotted}"
        if section in _FIXED_SECTIONS or dotted in _FIXED_FIELDS:
            cure = "list the variants in compare.methods." if section == "method" else "leave it out of the grid."
            varied = ", ".join(name for name in SECTIONS if name not in _FIXED_SECTIONS)
            yield Problem(where, "cannot be varied by the grid", f"fields of {varied}", cure)
        elif field_info(section, key) is None:
            near = suggest(section if section in SECTIONS else None, key or section)
            yield Problem(
                where,
                "is no field of a recipe",
                "section.field, for example training.learning_rate",
                f"did you mean {near}?" if near else "correct the name.",
            )


def own_grids_are_of_the_grid(compare: CompareSection) -> Iterator[Problem]:
    known = known_labels(compare.methods)
    for label, grid in compare.own_grids.items():
        where = f"compare.own_grids.{label}"
        if label not in known:
            near = get_close_matches(label, known, n=1)
            cure = f"did you mean {near[0]}?" if near else "correct the label."
            yield Problem(where, "is no label of compare.methods and no method", ", ".join(known), cure)
        for dotted in grid.keys() - compare.grid.keys():
            allowed = ", ".join(compare.grid) or "nothing: compare.grid is empty"
            yield Problem(f"{where}.{dotted}", "is no field of compare.grid", allowed, "put it in compare.grid too.")


def grid_values_differ(compare: CompareSection) -> Iterator[Problem]:
    grids = {"grid": compare.grid} | {f"own_grids.{label}": grid for label, grid in compare.own_grids.items()}
    for place, grid in grids.items():
        for dotted, values in grid.items():
            if not values or len({repr(value) for value in values}) < len(values):
                where = f"compare.{place}.{dotted}"
                yield Problem(where, "needs one value or more, each once", "a list", "list them once.")


RULES = (labels_are_names, grid_names_fields_that_may_differ, own_grids_are_of_the_grid, grid_values_differ)
