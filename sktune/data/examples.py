"""What the rooms above the data room handle: examples as read, and rows as encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ABSENT = -100  # the label id that losses and metrics leave out; of labels that are numbers, NaN


@dataclass(frozen=True, slots=True)
class Example:
    """One example as read, before tokenization.

    `reference` is the truth in the words of the data: a label name, several of them (IOB2 tags: one per word), a
    number, or the target text. `row` counts from 0 in the file or hub split, rows that were dropped included.
    """

    row: int
    text: str = ""
    text_pair: str | None = None
    words: tuple[str, ...] = ()
    reference: str | float | tuple[str, ...] = ""

    @property
    def is_empty(self) -> bool:
        """Whether its text, or of a pair both, say nothing."""
        return not (self.text + (self.text_pair or "")).strip()


@dataclass(frozen=True)
class Reading:
    """A whole split: its labelled examples, the data set's own label names, and where it came from.

    `report` is what a user should know of how it was read.
    """

    examples: list[Example]
    unlabelled: int
    class_names: tuple[str, ...] | None
    where: str
    report: list[str]


@dataclass(frozen=True)
class RawSplits:
    """The splits of a run: lists of examples, or None where the recipe asks for none.

    `labels` is the label set in order (None for numbers and free text), `report` what a user should know.
    """

    train: list[Example]
    validation: list[Example] | None
    test: list[Example] | None
    labels: tuple[str, ...] | None
    report: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """One unpadded input of the model, with its labels and what the evaluator needs.

    Attributes:
        index: number of the row in its split.
        input_ids: token ids, at least one.
        token_type_ids: segment ids, for encoders that have them.
        labels: a label id (-100 for a label outside the label set), a number, or several of them: one label per token
            (-100 where there is none), or what else the task's head takes.
        reference: a label name, a list of them, a number, or the target text.
        word_pieces: for each word the position in `input_ids` that carries its tag; -1 where there is none.
        group: number of the example in its split; the rows of one example's candidates share it.
        candidate: which label's words this row spells, where candidates are scored; else 0.
        answer: the position in `input_ids` at which the language model answers, where a template has it do so.
        states: [tokens, d], what the frozen lower blocks make of it, where that is kept; or packed (`state_codes`).
    """

    index: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    labels: int | float | list[int] | list[float]
    reference: str | float | list[str]
    word_pieces: list[int] = field(default_factory=list)
    group: int = 0
    candidate: int = 0
    answer: int | None = None
    states: torch.Tensor | None = field(default=None, compare=False)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def labelled(self) -> int:
        """How many of its labels enter the loss: integers but -100, numbers but NaN; the same rule as the heads'."""
        labels = self.labels if isinstance(self.labels, list) else [self.labels]
        return sum(label == label if isinstance(label, float) else label != ABSENT for label in labels)


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split, and what happened to its texts on the way."""

    rows: Sequence[Row]
    report: list[str]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, as the batch makers want them."""
        return [row.length for row in self.rows]
