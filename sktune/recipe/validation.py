"""From a mapping to a checked `Recipe`: the schema section by section, then the rules between sections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sktune.errors import Problem
from sktune.recipe.comparing import compared_method
from sktune.recipe.keys import SECTIONS, allowed_in, field_info, keys_of, meant_value, suggest, variants
from sktune.recipe.recipe import Recipe
from sktune.recipe.rules import broken_rules
from sktune.sections import CompareSection, Section


def check(mapping: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Check a whole recipe and collect every problem.

    Rules run for all sections that the schema accepts, so a mistake in one section does not hide those
    between two others. A section without fields (`quantization:`) stands for its defaults.

    Returns:
        The recipe, or None where there is more wrong than options that do nothing; and the problems.
    """
    mapping = {str(key): section for key, section in mapping.items()}
    problems = [_unknown_section(key) for key in mapping if key not in SECTIONS]
    sections, found = check_sections(mapping, tuple(Recipe.model_fields))
    problems += found
    given = {name: section for name, section in sections.items() if name in mapping}
    problems += broken_rules(sections)
    problems += _compared_methods(sections.get("compare"), mapping.get("method"))
    return (Recipe(**given) if all(problem.idle for problem in problems) else None), problems


def check_sections(mapping: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Section], list[Problem]]:
    """Some sections of a recipe, each by itself: those that are right, and what is wrong with the others."""
    sections: dict[str, Section] = {}
    problems: list[Problem] = []
    for name in names:
        info = Recipe.model_fields[name]
        if name in mapping:
            section, found = _check_section(name, {} if mapping[name] is None else mapping[name])
            problems += found
            if section is not None and not found:
                sections[name] = section
        elif info.is_required():
            problems.append(_missing_section(name))
        else:
            sections[name] = info.get_default(call_default_factory=True)
    return sections, problems


def _compared_methods(compare: Section | None, own: Any) -> list[Problem]:
    """What is wrong with the method sections of `compare`, each by itself; see `comparing` for what is filled in."""
    if not isinstance(compare, CompareSection):
        return []
    problems: list[Problem] = []
    for label, fields in compare.methods.items():
        section, found = _check_section("method", compared_method(label, fields, own))
        if section is not None and not found:
            found = broken_rules({"method": section})
        where = f"compare.methods.{label}"
        problems += [
            replace(problem, field=where + problem.field.removeprefix("method"))
            for problem in found
            # The recipe's own method may have been overridden by one without a text: only a comparison needs it.
            if (problem.field, problem.message) != ("method.text", "is required")
        ]
    return problems


def _check_section(name: str, content: Any) -> tuple[Section | None, list[Problem]]:
    if not isinstance(content, Mapping):
        cure = f"write `{name}:` and below it, indented, `field: value` lines."
        return None, [Problem(name, "must be a section", f"the fields {', '.join(keys_of(name))}", cure)]
    cls = _variant(name, content)
    if isinstance(cls, Problem):
        return None, [cls]
    try:
        content = {str(key): value for key, value in content.items()}
        section = cls.model_validate(content)
    except ValidationError as error:
        found = (_from_pydantic(name, cls, entry) for entry in error.errors(include_url=False))
        return None, list(dict.fromkeys(found))  # a field that may be of several kinds is none of each
    return section, _numbers_taken_loosely(name, content, section)


def _variant(name: str, content: Mapping[str, Any]) -> type[Section] | Problem:
    """The class that checks this section; for the method and the task, the one its `name` asks for."""
    classes = variants(name)
    if "" in classes:
        return classes[""]
    choice = content.get("name")
    if isinstance(choice, str) and choice in classes:
        return classes[choice]
    message = "unknown name" if "name" in content else "is required"
    meant = meant_value(name, "name", choice, classes)
    cure = f"did you mean {meant}?" if meant else f"write `name: {next(iter(classes))}`."
    return Problem(f"{name}.name", message, ", ".join(classes), cure)


def _from_pydantic(name: str, cls: type[Section], entry: ErrorDetails) -> Problem:
    """One error of pydantic's in the user's names and with a cure."""
    location = [str(part) for part in entry["loc"] if part != "[key]"]
    dotted, key = ".".join([name, *location]), location[0]
    kind = entry["type"]
    info = cls.model_fields.get(key)
    if info is not None and {str, tuple[str, ...]} <= set(get_args(info.annotation)):
        default = "null" if info.default is None else info.default
        cure = f"put quotes around a number that is meant as text, or leave it out for the default ({default})."
        return Problem(f"{name}.{key}", "must be a text, or a list of texts", allowed_in(info), cure)
    if kind == "extra_forbidden":
        return _unknown_key(name, cls, key)
    info = cls.model_fields[key]
    if kind == "missing":
        cure = f"add `{key}:` below `{name}:`. {info.description or ''}"
        return Problem(dotted, "is required", allowed_in(info), cure)
    message = entry["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("String should", "must")
    meant = meant_value(name, key, entry["input"], get_args(info.annotation)) if kind == "literal_error" else ""
    if meant:
        cure = f"did you mean {meant}?"
    elif kind == "string_type":
        cure = "write a text; put quotes around a number, true, false or null that is meant as one."
    elif info.is_required():
        cure = info.description or "give a value that is allowed."
    else:
        default = str(info.default).lower() if isinstance(info.default, bool) else info.default
        default = "null" if default is None else default
        cure = f"give a value that is allowed, or leave it out for the default ({default})."
    return Problem(dotted, message, allowed_in(info), cure)


def _numbers_taken_loosely(name: str, content: Mapping[str, Any], section: Section) -> list[Problem]:
    """What pydantic lets pass as a number and nobody means: true, false, infinity."""
    problems = []
    for key, written in content.items():
        value = getattr(section, key)
        if isinstance(written, bool) and isinstance(value, (int, float)) and not isinstance(value, bool):
            message = "must be a number, not true or false"
        elif isinstance(value, float) and not math.isfinite(value):
            message = "must be a finite number"
        else:
            continue
        allowed = allowed_in(type(section).model_fields[key])
        problems.append(Problem(f"{name}.{key}", message, allowed, "give a number."))
    return problems


def _unknown_key(name: str, cls: type[Section], key: str) -> Problem:
    dotted, allowed = f"{name}.{key}", ", ".join(cls.model_fields)
    if field_info(name, key) is not None:  # a field of another variant of this section
        owners = " and ".join(choice for choice, other in variants(name).items() if key in other.model_fields)
        chosen = next(choice for choice, other in variants(name).items() if other is cls)
        cure = f"leave it out, or override the whole section: {name}={{name: {chosen}, ...}}"
        return Problem(dotted, f"is a field of {owners}, not of {chosen}", allowed, cure)
    return Problem(dotted, "unknown field", allowed, _did_you_mean(suggest(name, key)))


def _unknown_section(key: str) -> Problem:
    return Problem(key, "unknown section", ", ".join(SECTIONS), _did_you_mean(suggest(None, key)))


def _did_you_mean(name: str) -> str:
    return f"did you mean {name}?" if name else "leave it out."


def _missing_section(name: str) -> Problem:
    cls = variants(name).get("")
    needed = [key for key, info in cls.model_fields.items() if info.is_required()] if cls else ["name"]
    cure = f"add `{name}:` and below it, indented, {' and '.join(f'`{key}: ...`' for key in needed)}."
    return Problem(name, "this section is required", ", ".join(keys_of(name)), cure)
