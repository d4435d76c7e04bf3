"""Recipes in and out: load a file, take a mapping, write YAML, check files for `sktune validate`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktune.errors import Problem
from sktune.recipe.document import to_yaml
from sktune.recipe.environment import escape, substitute, with_mlflow_environment
from sktune.recipe.errors import RecipeError, Written
from sktune.recipe.extending import read_extended
from sktune.recipe.overrides import apply_overrides
from sktune.recipe.recipe import Recipe
from sktune.recipe.validation import check, check_sections
from sktune.sections import Section


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe together with what the user wrote.

    Attributes:
        recipe: The checked recipe; `${NAME}` references are replaced, so it may hold secrets.
        as_written: The mapping with overrides applied and references not replaced: safe to log.
        source: The file.
    """

    recipe: Recipe
    as_written: dict[str, Any]
    source: Path

    def loggable(self) -> dict[str, Any]:
        """Every field of a run, defaults included, with texts that hold `${NAME}` left as they were written.

        The section `compare` is left out: it says nothing of this run.
        """
        return _with_references(self.recipe.model_dump(mode="json", exclude={"compare"}), self.as_written)

    def text(self) -> str:
        """YAML that loads again: overrides applied, `${NAME}` references left as they were written."""
        return to_yaml(self.as_written)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe file; see `load_recipe_document`."""
    return load_recipe_document(path, overrides).recipe


def load_recipe_document(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe file, apply overrides, replace `${NAME}` references, and check the result.

    Where the recipe says nothing of them, MLflow's own variables decide on `tracking.tracking_uri` and
    `tracking.experiment_name`.

    Args:
        path: A YAML file.
        overrides: `section.field=value` texts, applied in order; values are YAML.

    Raises:
        RecipeError: With every problem of the file, the overrides, the environment, the fields and the
            rules between them.
    """
    source = Path(path)
    document = read_extended(source)
    mapping, overridden, problems = apply_overrides(document.mapping, overrides)
    mapping = with_mlflow_environment(mapping, os.environ)
    values, unresolved = substitute(mapping, os.environ)
    written = Written(str(source), mapping, document.places, overridden)
    recipe = _checked(values, written, [*document.problems, *problems, *unresolved])
    return LoadedRecipe(recipe, mapping, source)


def load_sections(path: str | Path, names: Sequence[str], *, lenient: bool = False) -> dict[str, Section]:
    """Some sections of a recipe file, each checked by itself; what else the file says is not looked at.

    `lenient`: a `${NAME}` that is not set stays as it is written.

    Raises:
        RecipeError: With every problem of these sections.
    """
    document = read_extended(Path(path))
    mapping = {name: section for name, section in document.mapping.items() if name in names}
    values, unresolved = substitute(mapping, os.environ)
    sections, problems = check_sections(values, names)
    if problems := [*([] if lenient else unresolved), *problems]:
        written = Written(str(path), mapping, document.places)
        raise RecipeError(str(path), [written.locate(problem) for problem in problems])
    return sections


def parse_recipe(mapping: Mapping[str, Any], source: str = "<python>") -> Recipe:
    """Check a recipe given as a mapping; its texts are taken as they are, without `${NAME}` replacement.

    Raises:
        RecipeError: With every problem.
    """
    return _checked(mapping, Written(source, mapping), [])


def _checked(values: Mapping[str, Any], written: Written, problems: list[Problem]) -> Recipe:
    recipe, found = check(values)
    # What follows from an earlier problem of the same field would only repeat it.
    reported = {problem.field for problem in problems if problem.field}
    problems = problems + [problem for problem in found if problem.field not in reported]
    if recipe is None or problems:
        raise RecipeError(written.source, [written.locate(problem) for problem in problems])
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML text of the fields that were given; loading it gives an equal recipe.

    The text holds replaced `${NAME}` references in full: write it only where secrets may lie.
    """
    given = recipe.model_dump(mode="json", exclude_unset=True)
    for section in ("method", "task"):
        given[section] = {"name": getattr(recipe, section).name, **given[section]}
    return to_yaml(escape(given))


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Dotted names to plain values: lists and empty mappings as JSON text, null as `null`."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in mapping.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
        else:
            plain = isinstance(value, (str, int, float))
            flat[name] = value if plain else json.dumps(value, ensure_ascii=False)
    return flat


def validate_files(paths: Sequence[str], overrides: Sequence[str] = ()) -> int:
    """Check recipe files and print `OK` or all errors of each; needs no GPU, model or data.

    Returns:
        0 where all are good, 1 where any is not or none was named: an exit status.
    """
    if not paths:
        print("no recipe named; for example: sktune validate recipes/*.yaml", file=sys.stderr)
        return 1
    failed = 0
    for path in paths:
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            failed += 1
            print(error, file=sys.stderr)
        else:
            bits = recipe.quantization.bits
            model = f"{recipe.model.name_or_path} ({f'{bits} bits' if bits else recipe.model.dtype})"
            print(f"OK {path}: {recipe.method.name} on {model}, {recipe.task.name}")
    if len(paths) > 1:
        print(f"{len(paths) - failed} of {len(paths)} recipes are good")
    return 1 if failed else 0


def _with_references(value: Any, written: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(written, Mapping):
        return {key: _with_references(item, written.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(written, list):
        return [_with_references(item, text) for item, text in zip(value, written, strict=True)]
    return written if isinstance(written, str) and "${" in written else value
