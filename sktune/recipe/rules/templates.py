"""Rules of the methods that let the language model answer: template, label words, demonstrations."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.errors import Problem
from sktune.recipe.methods import MethodSection, TemplateMethod
from sktune.recipe.templates import parse_template
from sktune.sections import DataSection, TaskSection, idle

_TASKS = ("sequence_classification", "pair_classification")


def a_word_answers_for_a_whole_text(method: MethodSection, task: TaskSection) -> Iterator[Problem]:
    if isinstance(method, TemplateMethod) and task.name not in _TASKS:
        cure = "choose one of those tasks, or another method"
        if task.name == "causal_lm":
            cure = "set task.name: sequence_classification, and move task.label_words to method.label_words"
        yield Problem(
            "method.name",
            f"{method.name} answers with one word for a label of the whole text, and {task.name} wants another answer",
            f"with task.name {' or '.join(_TASKS)}",
            f"{cure}.",
        )


def template_has_its_slots(method: MethodSection, data: DataSection) -> Iterator[Problem]:
    if not isinstance(method, TemplateMethod) or method.template is None:
        return
    pair = data.text_pair_column is not None
    try:
        parse_template(method.template, pair)
    except ValueError as error:
        slots = "{text}, {text_pair}" if pair else "{text}"
        yield Problem(
            "method.template",
            f"cannot be filled: it {error}"
            + ("" if pair else " (data.text_pair_column is null)" if "text_pair" in method.template else ""),
            f"{slots} and {{answer}}, each once; other braces written twice",
            "for example " + ("`{text} ? {answer} , {text_pair}`." if pair else "`{text} It was {answer}`."),
        )


def label_words_of_the_method_tell_labels_apart(method: MethodSection) -> Iterator[Problem]:
    if not isinstance(method, TemplateMethod) or method.label_words is None:
        return
    words = [word.strip() for word in method.label_words.values()]
    if len(words) < 2 or "" in words or len(set(words)) < len(words):
        yield Problem(
            "method.label_words",
            "cannot tell the labels apart",
            "two or more labels, each with a word of its own",
            "for example {negative: terrible, positive: great}.",
        )


def label_words_of_the_method_are_of_the_labels(method: MethodSection, task: TaskSection) -> Iterator[Problem]:
    if not isinstance(method, TemplateMethod) or method.label_words is None or task.labels is None:
        return
    if set(task.labels) != set(method.label_words):
        yield Problem(
            "method.label_words",
            "names other labels than task.labels",
            ", ".join(task.labels),
            "give every label of task.labels a word.",
        )


def choice_needs_demonstrations(method: MethodSection) -> Iterator[Problem]:
    if isinstance(method, TemplateMethod) and not method.demonstrations:
        why, cure = "there are no demonstrations to choose", "set method.demonstrations: 1 or more."
        yield from idle("method", method, ("choose",), why, cure)


RULES = (
    a_word_answers_for_a_whole_text,
    template_has_its_slots,
    label_words_of_the_method_tell_labels_apart,
    label_words_of_the_method_are_of_the_labels,
    choice_needs_demonstrations,
)
