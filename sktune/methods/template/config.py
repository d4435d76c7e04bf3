"""The sections of methods that let the language model answer: what they have in common, and a template's slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from string import Formatter
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from sktune.errors import Problem, UserError
from sktune.methods.config import MethodConfig, StartsAs
from sktune.sections import DataSection, idle
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig, words_tell_labels_apart

ANSWER = "answer"
DEFAULT_TEMPLATE = "{text} Answer: {answer}"
DEFAULT_PAIR_TEMPLATE = "{text} {text_pair} Answer: {answer}"
"""Used where the recipe has none; the answer comes last, so they suit decoders too."""


class Piece(NamedTuple):
    """Characters of a template, and the slot behind them (None at the end)."""

    literal: str
    slot: str | None


def parse_template(template: str, pair: bool) -> tuple[Piece, ...]:
    """A template's pieces, in order.

    Args:
        template: as the recipe has it; braces that are none of a slot's are written twice.
        pair: whether there is a second text.

    Raises:
        UserError: in half a sentence, for slots that are unknown, missing or there twice.
    """
    wanted = ["text", *(["text_pair"] if pair else []), ANSWER]
    try:
        parsed = list(Formatter().parse(template))
    except ValueError:
        raise UserError("has a single brace") from None
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise UserError("has a slot with a format of its own")
    found = Counter(slot for _, slot, _, _ in parsed if slot is not None)
    if unknown := sorted(set(found) - set(wanted)):
        raise UserError(f"has the unknown slot {{{unknown[0]}}}")
    for slot in wanted:
        if found[slot] != 1:
            raise UserError(f"has {{{slot}}} {found[slot]} times" if found[slot] else f"lacks {{{slot}}}")
    return tuple(Piece(literal, slot) for literal, slot, _, _ in parsed)


class TemplateConfig(MethodConfig):
    """What prompt_based and in_context have in common: the language model fills the answer slot of a template."""

    template: str | None = Field(
        None,
        min_length=1,
        description="With {text}, {answer} and, of pairs, {text_pair}; a decoder's ends with {answer}. "
        "null: `{text} Answer: {answer}`, of pairs `{text} {text_pair} Answer: {answer}`.",
    )
    label_words: dict[str, str] | None = Field(
        None, description="Label -> the word that stands for it (its first token is scored); null: the label's name."
    )
    demonstrations: int = Field(0, ge=0, description="Answered training examples of each label in front of the input.")
    choose: Literal["random", "similar"] = Field(
        "random", description="Drawn once with the run's seed, or for each input the nearest by TF-IDF."
    )

    answers_in_words: ClassVar[bool] = True

    @property
    def starts_as(self) -> StartsAs:
        return "model"

    @property
    def needs_training_data(self) -> bool:
        return self.demonstrations > 0

    def longest_row(self, data: DataSection, labels: int, count: Callable[[str], int]) -> tuple[int, str | None]:
        pair = data.text_pair_column is not None
        template = self.template or (DEFAULT_PAIR_TEMPLATE if pair else DEFAULT_TEMPLATE)
        literals = "".join(literal for literal, _ in parse_template(template, pair))
        fixed = 1 + count(literals)  # the answer too
        shown, note = self.demonstrations * labels, None
        if shown:
            note = (
                f"rows are {data.max_length} tokens in a template of {fixed} behind {shown} demonstrations as long, "
                "up to the model's positions"
            )
        return (1 + shown) * (fixed + data.max_length), note

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        if task is not None:
            yield from self._a_word_answers_for_a_whole_text(task)
        if data is not None and self.template is not None:
            yield from self._template_has_its_slots(self.template, data.text_pair_column is not None)
        if self.label_words is not None:
            yield from self._label_words_tell_labels_apart(
                self.label_words, task.given_labels if task is not None else None
            )
        if not self.demonstrations:
            why, cure = "there are no demonstrations to choose", "set method.demonstrations: 1 or more."
            yield from idle("method", self, ("choose",), why, cure)

    def _a_word_answers_for_a_whole_text(self, task: TaskConfig) -> Iterator[Problem]:
        if task.one_label_per_text:
            return
        suitable = TASKS.having("one_label_per_text")
        cure = "choose one of those tasks, or another method"
        if getattr(task, "label_words", None) is not None:
            cure = f"set task.name: {suitable[0]}, and move task.label_words to method.label_words"
        yield Problem(
            "method.name",
            f"{self.name} answers with one word for a label of the whole text, and {task.name} wants another answer",
            f"with task.name {' or '.join(suitable)}",
            f"{cure}.",
        )

    def _template_has_its_slots(self, template: str, pair: bool) -> Iterator[Problem]:
        try:
            parse_template(template, pair)
        except ValueError as error:
            slots = "{text}, {text_pair}" if pair else "{text}"
            yield Problem(
                "method.template",
                f"cannot be filled: it {error}"
                + ("" if pair else " (data.text_pair_column is null)" if "text_pair" in template else ""),
                f"{slots} and {{answer}}, each once; other braces written twice",
                "for example " + ("`{text} ? {answer} , {text_pair}`." if pair else "`{text} It was {answer}`."),
            )

    def _label_words_tell_labels_apart(
        self, label_words: dict[str, str], labels: tuple[str, ...] | None
    ) -> Iterator[Problem]:
        yield from words_tell_labels_apart("method.label_words", label_words, "a word")
        if labels is not None and set(labels) != set(label_words):
            yield Problem(
                "method.label_words",
                "names other labels than task.labels",
                ", ".join(labels),
                "give every label of task.labels a word.",
            )
