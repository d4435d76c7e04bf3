"""Whether the splits of a run speak of the same labels and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sktune.data.examples import Example
from sktune.data.labels import label_counts
from sktune.data.tags import OUTSIDE
from sktune.errors import UserError

_LISTED = 20

_Input = tuple[str, str | None, tuple[str, ...]]


def check_known_labels(
    examples: Sequence[Example], labels: Sequence[str], split: str, where: str, *, words: bool
) -> None:
    """Refuse a split of which no label is one of training's: every score of it would be 0.

    Args:
        examples: of an evaluation split.
        labels: training's label set.
        split: its name.
        where: its file or hub split, for the message.
        words: whether the labels are tags, of which O says nothing.

    Raises:
        UserError: naming both sets.
    """
    found = label_counts(examples)
    if words:
        found.pop(OUTSIDE, None)
    if not found or any(label in found for label in labels):
        return
    known = [label for label in labels if not (words and label == OUTSIDE)]
    raise UserError(
        f"data.{split}: no {'tag' if words else 'label'} of {where} is one of training's. "
        f"There: {listed(sorted(found))}; in training: {listed(known)}. Write them alike "
        "(`sktune evaluate` has --label-map), or name another split."
    )


def outside_range(train: Sequence[Example], examples: Sequence[Example], split: str) -> list[str]:
    """One report line where every number of a split lies outside the numbers of training."""
    trained, numbers = _numbers(train), _numbers(examples)
    if not trained or not numbers:
        return []
    low, high = min(trained), max(trained)
    if any(low <= number <= high for number in numbers):
        return []
    return [
        f"{split}: every number ({min(numbers):g} to {max(numbers):g}) lies outside training's "
        f"({low:g} to {high:g}); are they on one scale?"
    ]


def repeated_examples(train: Sequence[Example], examples: Sequence[Example], split: str) -> list[str]:
    """One report line on examples of a split that is scored whose input stands in training too."""
    seen = {_input(example) for example in train}
    count = sum(_input(example) in seen for example in examples)
    if not count:
        return []
    return [f"{split}: {count} of {len(examples)} examples stand in training too, so its scores flatter"]


def contradictions(examples: Sequence[Example], split: str) -> list[str]:
    """One report line on inputs that a split gives with different labels."""
    labels: dict[_Input, str | float | tuple[str, ...]] = {}
    several = {
        _input(example)
        for example in examples
        if labels.setdefault(_input(example), example.reference) != example.reference
    }
    if not several:
        return []
    first = next(example.row for example in examples if _input(example) in several)
    return [f"{split}: {len(several)} inputs have different labels in different rows, the first of them in row {first}"]


def listed(names: Sequence[str]) -> str:
    """Names separated by commas, the first 20 and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _input(example: Example) -> _Input:
    return example.text, example.text_pair, example.words


def _numbers(examples: Iterable[Example]) -> list[float]:
    return [example.reference for example in examples if isinstance(example.reference, float)]
