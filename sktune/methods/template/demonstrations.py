"""Which answered training examples are shown in front of an input."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from sktune.data.examples import Example
from sktune.errors import UserError

_CHUNK = 256
"""Inputs compared with all training examples at once."""


class Demonstrations:
    """Chooses, for each input, so many training examples of every label.

    A function of the training split, the seed and the input alone: the same on every rank, and in every run that
    reads the same data. An example with the input's own text (and second text) is never shown to it.

    Args:
        train: the training split, or what of it may be shown.
        labels: the label set.
        per_label: how many of each.
        choose: `random`: the first of each label in one order that the seed draws; `similar`: those nearest to the
            input by the cosine of their TF-IDF vectors, the earlier example where two are as near.
        seed: of the run.

    Raises:
        UserError: with `similar`, where no training text holds a word.
    """

    def __init__(
        self,
        train: Sequence[Example],
        labels: Sequence[str],
        per_label: int,
        choose: Literal["random", "similar"],
        seed: int,
    ) -> None:
        self.train = train
        self.per_label = per_label
        order = list(range(len(train)))
        if choose == "random":
            random.Random(f"{seed} demonstrations").shuffle(order)
        self._of_label = {label: [row for row in order if train[row].reference == label] for label in labels}
        self._rows_of_label = [np.array(rows, dtype=int) for rows in self._of_label.values()]
        self._place = {row: place for place, row in enumerate(order)}
        self._same_text: dict[tuple[str, str | None], list[int]] = {}
        for row, example in enumerate(train):
            self._same_text.setdefault(_text(example), []).append(row)
        self._vectorizer: Any = None
        if choose == "similar":
            self._vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
            try:
                self._vectors = self._vectorizer.fit_transform(map(_one_text, train))
            except ValueError as error:
                raise UserError(
                    f"method.choose: similar compares words, and the training texts have none ({error}); choose random"
                ) from None
        self.report = [
            f"demonstrations: label {label} has {len(rows)} training examples, fewer than the {per_label} asked for"
            for label, rows in self._of_label.items()
            if len(rows) < per_label
        ]

    def of(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The demonstrations of each example in the order they are shown: the nearest last, or as drawn."""
        if self._vectorizer is None:
            return [self._drawn(example) for example in examples]
        chosen: list[list[Example]] = []
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            likeness = (self._vectorizer.transform(map(_one_text, chunk)) @ self._vectors.T).toarray()
            chosen += [self._nearest(example, row) for example, row in zip(chunk, likeness, strict=True)]
        return chosen

    def _drawn(self, example: Example) -> list[Example]:
        own = set(self._same_text.get(_text(example), ()))
        shown: list[int] = []
        for rows in self._of_label.values():
            others = (row for row in rows if row not in own)
            shown += [row for row, _ in zip(others, range(self.per_label), strict=False)]
        return [self.train[row] for row in sorted(shown, key=self._place.__getitem__)]

    def _nearest(self, example: Example, likeness: np.ndarray) -> list[Example]:
        likeness[self._same_text.get(_text(example), [])] = -1
        shown: list[int] = []
        for rows in self._rows_of_label:
            of_label = likeness[rows]
            count = min(self.per_label, int((of_label >= 0).sum()))
            if count:
                candidates = rows[of_label >= np.partition(of_label, -count)[-count]]
                shown += candidates[np.lexsort((candidates, -likeness[candidates]))][:count].tolist()
        return [self.train[row] for row in sorted(shown, key=lambda row: (likeness[row], -row))]


def _text(example: Example) -> tuple[str, str | None]:
    return example.text, example.text_pair


def _one_text(example: Example) -> str:
    return example.text if example.text_pair is None else f"{example.text} {example.text_pair}"
