"""`section.field=value` on the command line, applied over a recipe before it is checked."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from sktune.errors import Problem
from sktune.recipe.document import parse_value
from sktune.recipe.keys import SECTIONS, field_info, keys_of, suggest, takes_list, takes_text

_FORM = "section.field=value, for example training.learning_rate=1e-2"


def apply_overrides(
    mapping: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], set[str], list[Problem]]:
    """Apply overrides in order; the last one for a field wins.

    A value is YAML (`null`, `1e-3`, `[a, b]`, `{name: head_only}`), and an override of a whole section
    replaces it. What a field of text is given without quotes is its text to the last character: `a: b # c`.

    Returns:
        The new mapping (the one given is left as it is), the dotted names that overrides spoke of, and one
        problem for each override that could not be applied.
    """
    result = copy.deepcopy(dict(mapping))
    overridden: set[str] = set()
    problems: list[Problem] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        problem = _not_the_form(override, path, equals) or _unknown_path(path)
        overridden.add(path)
        if problem is None:
            try:
                _assign(result, path, _value(path, text))
            except yaml.YAMLError as error:
                what = getattr(error, "problem", None) or "not YAML"
                problem = Problem(path, f"the value is not valid YAML: {what}", cure="put it in quotes.")
        if problem is not None:
            value = f"= {text}" if problem.field else ""
            problems.append(dataclasses.replace(problem, value=value))
    return result, overridden, problems


def _not_the_form(override: str, path: str, equals: str) -> Problem | None:
    if not equals:
        return Problem("", f"the override {override!r} has no `=`", _FORM, "join field and value with `=`.")
    if path.startswith("-"):
        return Problem("", f"the override {override!r} starts with a dash", _FORM, f"write {path.lstrip('-')}=...")
    return None


def _unknown_path(path: str) -> Problem | None:
    section, _, rest = path.partition(".")
    key, _, inner = rest.partition(".")
    if section not in SECTIONS:
        near = suggest(None, section)
        if rest and near in SECTIONS:
            near = f"{near}.{rest}"
        return Problem(path, "unknown section", ", ".join(SECTIONS), _did_you_mean(near))
    if not rest:
        return None
    info = field_info(section, key)
    if info is None:
        cure = _did_you_mean(suggest(section, key))
        return Problem(path, "unknown field", ", ".join(keys_of(section)), cure)
    takes_names = any(get_origin(kind) is dict for kind in (info.annotation, *get_args(info.annotation)))
    if inner and not takes_names:
        return Problem(path, "there are no fields below this one", _FORM, f"write {section}.{key}=...")
    return None


def _value(path: str, text: str) -> Any:
    # In a file YAML's signs have a structure to serve; on the command line a text with a colon is just that.
    plain = text.strip()
    section, _, key = path.partition(".")
    if plain.startswith(("'", '"')) or not takes_text(section, key):
        return parse_value(text)
    try:
        value = parse_value(plain)
    except yaml.YAMLError:
        return plain
    if isinstance(value, list) and takes_list(section, key):
        return value
    return plain if isinstance(value, (str, dict, list)) else value


def _assign(mapping: dict[str, Any], path: str, value: Any) -> None:
    # At most three levels, so that a tag may itself contain dots: tracking.tags.team.name=a.
    *parents, last = path.split(".", 2)
    place = mapping
    for name in parents:
        if not isinstance(place.get(name), dict):
            place[name] = {}
        place = place[name]
    place[last] = value


def _did_you_mean(name: str) -> str:
    return f"did you mean {name}?" if name else "use one of the allowed names."
