"""What the section `task` of a recipe says of a task, whichever it is; imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem, UserError
from sktune.sections import DataSection, Section

TEXT_COLUMNS = frozenset({"text_column", "text_pair_column", "label_column", "text_template"})
"""Fields of `data` that a task on texts reads, of those that only some tasks read."""


class TaskConfig(Section):
    """The section `task`: a subclass for each task, with the fields that have an effect there, its traits and rules.

    Everything else asks the traits, never the name.
    """

    name: str

    known_as: ClassVar[Mapping[str, str]] = {}
    """What other tools call it, in lower case, and what else has to be said there for it to be the same."""
    columns: ClassVar[frozenset[str]] = TEXT_COLUMNS
    """Fields of `data` that it reads, of those that only some tasks read."""
    reads_words: ClassVar[bool] = False
    """An example is a list of tagged words: CoNLL files, or lists in cells."""
    reads_numbers: ClassVar[bool] = False
    """The label column holds numbers, not names."""
    has_head: ClassVar[bool] = True
    """A head of its own, in fp32, is trained."""
    needs_language_model: ClassVar[bool] = False
    """The model is loaded with its language-model head."""
    one_label_per_text: ClassVar[bool] = False
    """Each text (or pair) has one label of a set, which a template can ask for in words."""
    problem_type: ClassVar[str | None] = None
    """What transformers calls it in a model's configuration, where it has a name for it."""
    hub_task: ClassVar[str | None] = None
    """What a model hub calls it (`pipeline_tag`), where it has a name for it."""
    assumed_labels: ClassVar[int] = 1
    """How many labels `sktune plan` counts where the recipe does not list them."""
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = ()
    """Examples in the description of a server (`sktune serve`): what is asked (`text`, of a pair `text_pair` too), and
    what `Task.shown` says of it; one for each form that answers have."""

    @property
    def reads_entities(self) -> bool:
        """Whether the tags of words spell entities, which are then what is scored."""
        return False

    @property
    def has_label_set(self) -> bool:
        """Whether answers are of a set of labels; else they are numbers or free text."""
        return self.given_labels is not None

    @property
    def given_labels(self) -> tuple[str, ...] | None:
        """The label set in order, where the recipe gives it."""
        return None

    @property
    def columns_to_name(self) -> dict[str, str]:
        """Fields of `data` without a default that it needs, each with a usual name of the column."""
        return {}

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer that is generated; 0 where nothing is."""
        return 0

    def metrics(self) -> tuple[str, ...]:
        """The names its evaluation reports, the main metric first."""
        raise NotImplementedError

    def problems(self, data: DataSection | None) -> Iterator[Problem]:
        """What is wrong between its own fields, and between them and the data (None where that is itself wrong)."""
        yield from ()


def class_metric_names(labels: Sequence[str] | None) -> tuple[str, ...]:
    """What is reported of one label for each text; F1 of the positive label where there are two, or may be."""
    of_two = ("positive_f1",) if labels is None or len(labels) == 2 else ()
    return ("accuracy", "f1", *of_two, "matthews", "loss")


def words_tell_labels_apart(field: str, label_words: Mapping[str, str], each: str) -> Iterator[Problem]:
    """What is wrong with the words that stand for labels: too few of them, an empty one, or one of two labels.

    Args:
        field: that holds them, for the message.
        label_words: label -> its words.
        each: what every label needs, for the message.
    """
    words = [word.strip() for word in label_words.values()]
    if len(words) < 2 or "" in words or len(set(words)) < len(words):
        yield Problem(
            field,
            "cannot tell the labels apart",
            f"two or more labels, each with {each} of its own",
            "for example {negative: terrible, positive: great}.",
        )


class LabelledConfig(TaskConfig):
    """A task whose answers are of a set of labels."""

    labels: tuple[str, ...] | None = Field(
        None, description="The label set in order; null infers it from training data."
    )

    assumed_labels: ClassVar[int] = 2

    @property
    def has_label_set(self) -> bool:
        return True

    @property
    def given_labels(self) -> tuple[str, ...] | None:
        return self.labels

    def problems(self, data: DataSection | None) -> Iterator[Problem]:
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            yield Problem(
                "task.labels",
                "must name two or more labels, each once",
                "a list of different labels, or null",
                "list every label once, or leave it out to take them from the training data.",
            )


class WeighedConfig(LabelledConfig):
    """A task whose head answers with one label of a set, and may be trained on them unequally."""

    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None,
        description="What a label counts in the training loss: {label: weight}, 1 for others; balanced: all labels "
        "together the same. Evaluation does not weigh.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each training label's probability that is spread over all labels."
    )

    def problems(self, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(data)
        weights = self.class_weights
        if isinstance(weights, dict):
            if not weights or min(weights.values()) < 0 or not all(map(math.isfinite, weights.values())):
                yield Problem(
                    "task.class_weights",
                    "must be numbers of 0 or more",
                    "balanced, or {label: weight}",
                    "for example {rare: 3, frequent: 1}.",
                )
            elif self.labels is not None:
                yield from self._unknown(weights, self.labels)

    @staticmethod
    def _unknown(weights: Mapping[str, float], labels: Sequence[str]) -> Iterator[Problem]:
        if unknown := [label for label in weights if label not in labels]:
            yield Problem(
                "task.class_weights",
                f"names {', '.join(map(repr, unknown))}, which no text is labelled with",
                ", ".join(labels),
                "write the labels as the data has them.",
            )

    def weights(self, labels: Sequence[str], counts: Sequence[int] | None) -> list[float] | None:
        """What a label of each class counts; None: all the same.

        Args:
            labels: the label set.
            counts: labels of each class in the training data; None where there is none.

        Raises:
            UserError: for a label that is not in the set, and for `balanced` without counts.
        """
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, dict):
            for problem in self._unknown(self.class_weights, labels):
                raise UserError(f"{problem.field} {problem.message}; allowed: {problem.allowed}; {problem.cure}")
            return [self.class_weights.get(label, 1.0) for label in labels]
        if counts is None:
            raise UserError(
                "task.class_weights: balanced counts the labels of the training data, and there is none here; give "
                "{label: weight}"
            )
        return [sum(counts) / (len(labels) * count) if count else 1.0 for count in counts]


class HeadConfig(TaskConfig):
    """A task with a head of its own."""

    head_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the features that the head reads.")


class PooledConfig(HeadConfig):
    """A task whose head reads one vector of each text."""

    pooling: Literal["auto", "last", "mean", "first"] = Field(
        "auto", description="Sentence vector: auto = last real token for decoders, masked mean for encoders."
    )
