"""Labels: from the values of a column to names, and from names to the label set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sktune.data.cells import as_text
from sktune.data.examples import Example
from sktune.errors import UserError


def as_integer(value: Any) -> int | None:
    """The integer that a value is or spells, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label: null, nothing, or not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def named(value: Any, class_names: Sequence[str] | None, given: Sequence[str] | None, where: str) -> str:
    """The name of a label.

    A ClassLabel's number takes its name from the data set. An integer without names is an index into the
    recipe's `task.labels`, unless these hold integers themselves; without `task.labels` its digits are its
    name.

    Raises:
        UserError: for an integer outside the names, beginning with `where`.
    """
    number = as_integer(value)
    names = class_names
    if names is None and given is not None and value not in given:
        names = given if all(as_integer(name) is None for name in given) else None
    if number is None or (names is None and isinstance(value, str)):
        text = as_text(value, where, what="one label is needed")
        if text is None:
            raise UserError(f"{where}: a label is null beside others that are not; give it a name, or drop it.")
        return text
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise UserError(f"{where}: label {number} is outside the {len(names)} names {', '.join(names)}.")
    return names[number]


def label_names(
    values: Sequence[Any], class_names: Sequence[str] | None, given: Sequence[str] | None, where: str
) -> list[str | None]:
    """The label name of every row, None where it is missing.

    Missing are empty cells, -1 in a ClassLabel column, and -1 throughout a split (hidden test labels). A -1
    beside other plain integers is a label like any other.
    """
    hidden = class_names is not None or all_hidden(values)
    return [
        None
        if is_missing(value) or (hidden and as_integer(value) == -1)
        else named(value, class_names, given, f"{where}, row {row}")
        for row, value in enumerate(values)
    ]


def numbers(values: Sequence[Any], where: str) -> list[float | None]:
    """The numbers of a column, None where missing (see `label_names`).

    Raises:
        UserError: naming the row of a value that is no finite number.
    """
    hidden = all_hidden(values)
    result: list[float | None] = []
    for row, value in enumerate(values):
        if is_missing(value) or (hidden and as_integer(value) == -1):
            result.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where}, row {row}: a finite number is needed, not {value!r}.")
        result.append(number)
    return result


def all_hidden(values: Sequence[Any]) -> bool:
    """Whether every label of a split is -1, as published test sets hide them."""
    return bool(values) and all(as_integer(value) == -1 for value in values)


def infer_labels(train: Sequence[Example], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The label set of a training split.

    The ClassLabel's names in their order, or the names that occur: integers by value, all others sorted as text.

    Raises:
        UserError: where fewer than two labels occur.
    """
    occurring = label_counts(train)
    if class_names is not None:
        labels = tuple(class_names)
    elif all(as_integer(name) is not None for name in occurring):
        labels = tuple(sorted(occurring, key=int))
    else:
        labels = tuple(sorted(occurring))
    return two_or_more(labels)


def two_or_more(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a training split, which must be several.

    Raises:
        UserError: for fewer than two.
    """
    if len(labels) < 2:
        found = f"the label {labels[0]!r} only" if labels else "no label"
        raise UserError(
            f"the training split holds {found}, so there is nothing to learn. "
            "Check the label or tag column, or set task.labels."
        )
    return labels


def check_training_labels(train: Sequence[Example], labels: Sequence[str], field: str, where: str) -> None:
    """Refuse a training label outside the label set that the recipe's `field` gives."""
    known = set(labels)
    for example in train:
        unknown = [name for name in _names(example) if name not in known]
        if unknown:
            raise UserError(
                f"{where}, row {example.row}: label {unknown[0]!r} is not in {field} ({', '.join(labels)}). "
                f"Add it there, or correct the data."
            )


def unseen_labels(examples: Sequence[Example], labels: Sequence[str], split: str) -> list[str]:
    """One report line on labels of an evaluation split that training does not know."""
    unseen = {name: n for name, n in label_counts(examples).items() if name not in set(labels)}
    if not unseen:
        return []
    listed = ", ".join(f"{name} ({n})" for name, n in sorted(unseen.items()))
    return [f"{split}: labels that training does not have, always counted as wrong: {listed}"]


def absent_labels(train: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """One report line on labels without any training example (I- tags of one-word entities are no
    surprise).
    """
    occurring = label_counts(train)
    absent = [name for name in labels if name not in occurring and not name.startswith("I-")]
    return [f"train: no example of {', '.join(absent)}"] if absent else []


def _names(example: Example) -> Iterable[str]:
    return example.reference if isinstance(example.reference, tuple) else (str(example.reference),)


def label_counts(examples: Iterable[Example]) -> Counter[str]:
    """How often each label occurs."""
    return Counter(name for example in examples for name in _names(example))
