"""What a task is: how its data are read, what the model is asked, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sktune.backbone import Backbone
from sktune.data import Coder, EncodedSplit, Example, Reading, Row
from sktune.data.collate import Side
from sktune.data.examples import ABSENT
from sktune.data.labels import check_training_labels, infer_labels
from sktune.data.table import Table
from sktune.sections import DataSection
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig
from sktune.tasks.heads import Head

Labels = Sequence[str] | None
"""The label set in order; None for numbers and free text."""
Answers = dict[int, Any]
"""Row number -> the model's answer, in the task's own form: tags, {label: probability}, a number ..."""
Constant = tuple[str, Callable[[Sequence[Example]], dict[str, float]]]
"""An answer that does not look at the input: its name, and what it scores on a split."""


class Outputs(Protocol):
    """What the model gives: see `sktune.model.tuned_model.TunedOutput`."""

    logits: torch.Tensor | None
    row_loss: torch.Tensor | None
    row_count: torch.Tensor | None


@dataclass(frozen=True)
class Scores:
    """A split's scores.

    metrics: by name, the task's main metric and `loss` among them.
    records: one JSON-ready mapping per example: its number in the split (`row`), reference and prediction.
    references, predictions: what a confusion matrix is made of (one label per text only).
    per_type: f1, precision, recall and support by entity type or label (where several are predicted at once).
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    references: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    per_type: dict[str, dict[str, float]] = field(default_factory=dict)


class Task:
    """Made from its section; what a subclass leaves as it is suits one label of a set for each row.

    Nothing else knows what a task is: data, loop, evaluation, prediction, comparison and plan ask it.
    """

    report: tuple[str, ...] = ()
    """What a user should know before the run, a line each."""
    answers_at_positions = False
    """Whether rows say at which position the language model answers (`Row.answer`)."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.config.name

    @property
    def reads_words(self) -> bool:
        """Whether an example is a list of tagged words."""
        return self.config.reads_words

    @property
    def reads_entities(self) -> bool:
        """Whether the tags of words spell entities; else each tag stands for itself."""
        return self.config.reads_entities

    # -- data -----------------------------------------------------------------------------------------------------

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        """The labelled examples of a split (train, validation or test), in the table's order.

        Raises:
            UserError: naming table, row and field of what cannot be read.
        """
        raise NotImplementedError

    def label_set(self, train: Reading) -> tuple[str, ...] | None:
        """The label set in order: the recipe's, or that of the whole training split; None where there is none.

        Raises:
            UserError: for a training label outside the recipe's, and for fewer than two labels.
        """
        if not self.config.has_label_set:
            return None
        given = self.config.given_labels
        if given is None:
            return self.infer_labels(train)
        check_training_labels(train.examples, given, "task.labels", train.where)
        return given

    def infer_labels(self, train: Reading) -> tuple[str, ...]:
        """The label set of a training split.

        Raises:
            UserError: for fewer than two labels.
        """
        return infer_labels(train.examples, train.class_names)

    def encode(
        self, examples: Sequence[Example], coder: Coder, labels: Labels, split: str, *, scoring: bool = False
    ) -> EncodedSplit:
        """Rows of token ids with their labels, in the order of the examples.

        Args:
            examples: of a split.
            coder: makes tokens of texts.
            labels: the label set.
            split: its name, for the report.
            scoring: rows as an evaluation needs them, where these differ from those of training.

        Raises:
            UserError: for a tokenizer, a length or a template that the texts cannot be read with.
        """
        raise NotImplementedError

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """The labels of a batch, as the head takes them: class ids [B] int64.

        Args:
            rows: None is a filler, whose labels do not count.
            width: tokens that the batch is padded to.
            side: of the padding.
        """
        return torch.tensor([ABSENT if row is None else row.labels for row in rows], dtype=torch.int64)

    def sample(self, length: int, labels: int) -> Row:
        """A row of so many tokens with every label counting, of so many labels: what a plan runs."""
        return Row(0, [0] * length, None, 0, "")

    # -- model ----------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, labels: int) -> Head:
        """What answers, for so many labels (1 where there is no label set).

        Raises:
            UserError: where the model is of another kind.
        """
        raise NotImplementedError

    # -- answers --------------------------------------------------------------------------------------------------

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        """The answers of one batch; fillers have none.

        Args:
            output: the model's.
            rows: of the batch.
            starts: position of each row's first real token; padding may be on the left.
            labels: the label set.
        """
        raise NotImplementedError

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        """Scores of a split's rows against their references; rows without an answer are left out.

        Args:
            rows: of the split.
            answers: from all ranks.
            loss: mean loss over the labels that count.
            labels: the label set.
        """
        raise NotImplementedError

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        """The best answer that does not look at the input, from the training split; None where there is none."""
        return None

    def example(self, text: str, text_pair: str | None) -> Example:
        """What `predict` is asked about, with any label."""
        return Example(0, text, text_pair)

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        """What `predict` says of an example: JSON-ready, besides its text."""
        raise NotImplementedError

    def line(self, shown: Mapping[str, Any]) -> str:
        """What was `shown`, in one line for a terminal."""
        return ", ".join(f"{name} {value}" for name, value in shown.items())


def build_task(config: TaskConfig) -> Task:
    """The task of a recipe's section."""
    task: Task = TASKS.implementation(config.name)(config)
    return task
