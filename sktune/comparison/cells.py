"""What a comparison runs: methods x grid points x seeds, each a recipe that differs in nothing else."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktune.errors import UserError
from sktune.files import CELLS_FOLDER
from sktune.methods import METHODS
from sktune.recipe import (
    CompareSection,
    LoadedRecipe,
    Problem,
    RecipeError,
    flatten,
    load_recipe_document,
)
from sktune.recipe.comparing import compared_method, known_labels


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    name: of its folder; readable, and different for each cell.
    label: the method as the comparison calls it.
    method: `method.name`.
    grid: the values of the grid's fields here, by dotted name.
    overrides: what makes the cell's recipe of the comparison's.
    """

    name: str
    label: str
    method: str
    grid: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]
    loaded: LoadedRecipe

    def settings(self) -> dict[str, str | int | float | bool]:
        """What makes this cell's result what it is: its recipe but for names, places and how it is launched."""
        shown, meant = flatten(self.loaded.loggable()), flatten(self.loaded.recipe.model_dump(mode="json"))
        beside = (
            "output.",
            "tracking.",
            "training.resume",
            "training.frozen_states_dir",
            "distributed.timeout_seconds",
        )
        return {
            # What `${NAME}` stood for is kept as a digest only.
            key: value if meant[key] == value else f"{value} (digest {_digest(meant[key])})"
            for key, value in shown.items()
            if not key.startswith(beside)
        }


@dataclass(frozen=True)
class Refused:
    """A method that cannot work with some of the comparison's settings, and why."""

    label: str
    points: int
    of_points: int
    problems: tuple[Problem, ...]


def plan_cells(
    source: Path, overrides: Sequence[str], folder: Path | None = None, chosen: Sequence[str] = ()
) -> tuple[list[Cell], list[Refused], LoadedRecipe]:
    """(cells in the order they run, what cannot work, the comparison's own recipe).

    Args:
        source: the recipe file.
        overrides: the user's, for all cells.
        folder: of the comparison; None takes the recipe's output.dir.
        chosen: labels of `compare.methods`, or names of methods; none takes `compare.methods`.

    Raises:
        UserError: for a recipe that is wrong by itself, or nothing to compare.
    """
    base = load_recipe_document(source, overrides, comparing=True)
    section = base.recipe.compare
    folder = folder or Path(base.recipe.output.dir)
    methods = _methods(base, section, chosen, overrides)
    names = _short_names(list(section.grid))
    cells: list[Cell] = []
    refused: list[Refused] = []
    for label, method in methods.items():
        found: dict[str, Problem] = {}
        refused_points = 0
        own_points = _points_of(method, section.grid | section.own_grids.get(label, {}), base)
        _check_selection(base, section, len(own_points))
        for point in own_points:
            seeds = [base.recipe.training.seed + offset for offset in range(section.seeds)]
            try:
                cells += [_cell(source, overrides, folder, label, method, point, names, seed) for seed in seeds]
            except RecipeError as error:
                refused_points += 1
                found |= {str(problem): problem for problem in error.problems}
        if found:
            refused.append(Refused(label, refused_points, len(own_points), tuple(found.values())))
    return _with_names_of_their_own(cells, folder), refused, base


def _points_of(
    method: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], base: LoadedRecipe
) -> list[dict[str, Any]]:
    """The grid points that differ for a method: rates that it does not read are no reason to run it again."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    config = METHODS.config(method["name"])
    kept = []
    for point in points:
        training = {field.removeprefix("training."): v for field, v in point.items() if field.startswith("training.")}
        unread = config.unread(base.recipe.training.model_copy(update=training))
        kept.append({field: value for field, value in point.items() if field not in unread})
    return [point for number, point in enumerate(kept) if point not in kept[:number]]


def refusal_message(refused: Sequence[Refused]) -> str:
    """All that cannot work, with field and reason, in one text."""
    lines = [f"{len(refused)} of the methods cannot work with this recipe (--skip-refused runs the others):"]
    for entry in refused:
        where = "" if entry.points == entry.of_points else f" (at {entry.points} of {entry.of_points} grid points)"
        for problem in entry.problems:
            lines.append(f"  {entry.label}{where}: {problem.field} {problem.value}".rstrip())
            lines.append(f"      {problem.message}")
            lines += [f"      cure: {problem.cure}"] if problem.cure else []
    return "\n".join(lines)


def _methods(
    base: LoadedRecipe, section: CompareSection, chosen: Sequence[str], overrides: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Label -> method section as written."""
    own = base.as_written.get("method", {})
    written: Mapping[str, Any] = (base.as_written.get("compare") or {}).get("methods") or {}
    known = known_labels(section.methods)
    if unknown := [label for label in chosen if label not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(
            f"--methods: {', '.join(unknown)}: no label of compare.methods and no method; allowed: "
            f"{', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    labels = list(dict.fromkeys(chosen or section.methods))
    if not labels:
        raise UserError(
            f"compare.methods: nothing to compare in {base.source}; give --methods {base.recipe.method.name},... "
            "or list methods in the recipe's section compare"
        )
    _refuse_unread(overrides, own, written)
    return {label: compared_method(label, written.get(label) or {}, own) for label in labels}


def _refuse_unread(overrides: Sequence[str], own: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Overrides of the recipe's own method that its section in compare.methods overrides again."""
    fields = written.get(str(own.get("name"))) or {}
    for override in overrides:
        field = override.partition("=")[0].strip().removeprefix("method.")
        if override.startswith("method.") and field in fields:
            raise UserError(
                f"{override}: would do nothing, since compare.methods has {own['name']}: {{{field}: {fields[field]}}}; "
                f"write compare.methods='{{{own['name']}: {{{field}: ...}}}}'"
            )


def _check_selection(base: LoadedRecipe, section: CompareSection, points: int) -> None:
    if points > 1 and section.select == "validation" and base.recipe.data.validation is None:
        raise UserError(
            "compare.select: the grid has several points and data.validation is null, so none can be chosen; name a "
            "validation split, or set compare.select=none to report every point"
        )


def _cell(
    source: Path,
    overrides: Sequence[str],
    folder: Path,
    label: str,
    method: dict[str, Any],
    point: dict[str, Any],
    names: Mapping[str, str],
    seed: int,
) -> Cell:
    suffix = "".join(f"-{names[field]}={_readable(value)}" for field, value in point.items()) + f"-seed{seed}"
    changes = (
        f"method={json.dumps(method, ensure_ascii=False)}",
        *(f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in point.items()),
        f"training.seed={seed}",
    )
    own = ("training.resume=auto", "output.overwrite=false", "compare={}")
    loaded = load_recipe_document(source, [*overrides, *changes, *own])
    model = loaded.recipe.model.name_or_path.rstrip("/").rsplit("/", 1)[-1].removeprefix("embedded:")
    bits = f"{loaded.recipe.quantization.bits}bit" if loaded.recipe.quantization.bits else loaded.recipe.model.dtype
    name = f"{label}{suffix}"
    run_name = f"{label}-{model}-{bits}{suffix}"
    loaded = _placed(loaded, str(folder / CELLS_FOLDER / name), run_name)
    return Cell(name, label, loaded.recipe.method.name, point, seed, changes, loaded)


def _placed(loaded: LoadedRecipe, output: str, run_name: str) -> LoadedRecipe:
    """The recipe with its own folder and run name, and without the section that makes a comparison of it."""
    recipe = loaded.recipe
    place = {"dir": output, "overwrite": False}
    recipe = recipe.model_copy(
        update={
            "compare": CompareSection(),
            "output": recipe.output.model_copy(update=place),
            "tracking": recipe.tracking.model_copy(update={"run_name": run_name}),
        }
    )
    written = {key: value for key, value in loaded.as_written.items() if key != "compare"}
    written["output"] = {**(written.get("output") or {}), **place}
    written["tracking"] = {**(written.get("tracking") or {}), "run_name": run_name}
    return LoadedRecipe(recipe, written, loaded.source)


def _with_names_of_their_own(cells: list[Cell], folder: Path) -> list[Cell]:
    """Values that read alike once shortened (two long paths) get a number."""
    seen: dict[str, int] = {}
    result = []
    for cell in cells:
        seen[cell.name] = seen.get(cell.name, 0) + 1
        if (count := seen[cell.name]) > 1:
            name = f"{cell.name}_{count}"
            run_name = f"{cell.loaded.recipe.tracking.run_name}_{count}"
            loaded = _placed(cell.loaded, str(folder / CELLS_FOLDER / name), run_name)
            cell = dataclasses.replace(cell, name=name, loaded=loaded)
        result.append(cell)
    return result


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """`training.learning_rate` -> `learning_rate`, where no other field of the grid ends so."""
    last = [field.rpartition(".")[2] for field in fields]
    return {field: name if last.count(name) == 1 else field for field, name in zip(fields, last, strict=True)}


def _digest(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:12]


def _readable(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text)[-40:]
