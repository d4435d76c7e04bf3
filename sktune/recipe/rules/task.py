"""Rules of the task: its labels, and which of its options it has a use for."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.errors import Problem
from sktune.sections import DataSection, TaskSection, idle

_SENTENCE_TASKS = ("sequence_classification", "pair_classification", "regression")


def causal_lm_has_one_kind_of_target(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    words, column = task.label_words is not None, data.target_column is not None
    if task.name == "causal_lm" and words == column:
        yield Problem(
            "task.label_words",
            f"{'both' if words else 'neither'} of task.label_words and data.target_column given",
            "with causal_lm: exactly one of the two",
            "label_words scores a fixed set of answers; data.target_column names a column of free text.",
        )


def targets_in_words_need_causal_lm(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if task.name != "causal_lm":
        why, cure = f"{task.name} has a head of its own", "set task.name: causal_lm."
        yield from idle("task", task, ("label_words",) if task.label_words is not None else (), why, cure)
        yield from idle("data", data, ("target_column",) if data.target_column is not None else (), why, cure)


def label_words_tell_labels_apart(task: TaskSection) -> Iterator[Problem]:
    if task.label_words is None:
        return
    words = [word.strip() for word in task.label_words.values()]
    if len(words) < 2 or "" in words or len(set(words)) < len(words):
        yield Problem(
            "task.label_words",
            "cannot tell the labels apart",
            "two or more labels, each with words of its own",
            "for example {negative: terrible, positive: great}.",
        )


def labels_agree_with_label_words(task: TaskSection) -> Iterator[Problem]:
    if task.label_words and task.labels is not None and set(task.labels) != set(task.label_words):
        yield Problem(
            "task.labels",
            "names other labels than task.label_words",
            ", ".join(task.label_words),
            "leave task.labels out; the order of label_words is taken.",
        )


def labels_are_two_or_more(task: TaskSection) -> Iterator[Problem]:
    if task.labels is not None and (len(task.labels) < 2 or len(set(task.labels)) < len(task.labels)):
        yield Problem(
            "task.labels",
            "must name two or more labels, each once",
            "a list of different labels, or null",
            "list every label once, or leave it out to take them from the training data.",
        )


def labels_need_classes(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if task.labels is None:
        return
    if task.name == "regression":
        why = "regression predicts a number"
        yield from idle("task", task, ("labels",), why, "choose a classification task.")
    elif task.name == "causal_lm" and data.target_column is not None:
        why = "the targets are free text"
        yield from idle("task", task, ("labels",), why, "give task.label_words instead.")


def pooling_needs_a_sentence_task(task: TaskSection) -> Iterator[Problem]:
    if task.name not in _SENTENCE_TASKS:
        why = f"{task.name} makes no sentence vector"
        yield from idle("task", task, ("pooling",), why, f"choose one of {', '.join(_SENTENCE_TASKS)}.")


def labelled_piece_needs_token_classification(task: TaskSection) -> Iterator[Problem]:
    if task.name != "token_classification":
        why = f"{task.name} puts no label on words"
        yield from idle("task", task, ("labelled_piece",), why, "set task.name: token_classification.")


def head_dropout_needs_a_head(task: TaskSection) -> Iterator[Problem]:
    if task.name == "causal_lm":
        yield from idle("task", task, ("head_dropout",), "causal_lm has no head", "choose another task.")


def max_new_tokens_needs_generation(task: TaskSection) -> Iterator[Problem]:
    if task.name != "causal_lm" or task.label_words is not None:
        why = "nothing is generated"
        yield from idle("task", task, ("max_new_tokens",), why, "use causal_lm with data.target_column.")


RULES = (
    causal_lm_has_one_kind_of_target,
    targets_in_words_need_causal_lm,
    label_words_tell_labels_apart,
    labels_agree_with_label_words,
    labels_are_two_or_more,
    labels_need_classes,
    pooling_needs_a_sentence_task,
    labelled_piece_needs_token_classification,
    head_dropout_needs_a_head,
    max_new_tokens_needs_generation,
)
