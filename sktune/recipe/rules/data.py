"""Rules of the data: the columns a task reads, and options that need a split or a format."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.embedded import FOLDERS, PREFIX
from sktune.errors import Problem
from sktune.recipe.rules.embedded_names import unknown_embedded
from sktune.sections import DataSection, TaskSection, idle


def pairs_need_a_second_column(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if task.name == "pair_classification" and data.text_pair_column is None:
        yield Problem(
            "data.text_pair_column",
            "pair_classification needs the column of the second text",
            "the name of a column",
            "for example `text_pair_column: hypothesis` with `text_column: premise`.",
        )


def pairs_are_not_tagged(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if task.name == "token_classification" and data.text_pair_column is not None:
        why = "token_classification reads one list of words"
        yield from idle("data", data, ("text_pair_column",), why, "set task.name: pair_classification.")


def pair_template_needs_a_pair(data: DataSection) -> Iterator[Problem]:
    if data.text_pair_column is None:
        yield from idle("data", data, ("pair_template",), "there is no second text", "set text_pair_column.")


def pair_template_names_both_texts(data: DataSection) -> Iterator[Problem]:
    if not ("{text}" in data.pair_template and "{text_pair}" in data.pair_template):
        yield Problem(
            "data.pair_template",
            "must hold both texts",
            "a text with {text} and {text_pair} in it",
            'for example "{text}\\n{text_pair}" (in double quotes, so that \\n is a new line).',
        )


def columns_belong_to_the_task(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if task.name == "token_classification":
        why, cure = "token_classification reads words and tags", "use words_column and tags_column."
        yield from idle("data", data, ("text_column", "label_column"), why, cure)
    else:
        why, cure = f"{task.name} reads no lists of words", "use text_column and label_column."
        yield from idle("data", data, ("words_column", "tags_column"), why, cure)


def conll_holds_tagged_words(task: TaskSection, data: DataSection) -> Iterator[Problem]:
    if data.format == "conll" and task.name != "token_classification":
        yield Problem(
            "data.format",
            f"CoNLL files hold tagged words, which {task.name} does not read",
            f"with {task.name}: auto, hub, jsonl, csv, tsv, parquet",
            "choose the format of your file, or set task.name: token_classification.",
        )


def conll_columns_need_conll(data: DataSection) -> Iterator[Problem]:
    if data.format not in ("auto", "conll"):
        keys, why = ("conll_word_column", "conll_tag_column"), f"the format is {data.format}"
        yield from idle("data", data, keys, why, "set data.format: conll.")


def sample_limits_need_their_split(data: DataSection) -> Iterator[Problem]:
    for split in ("validation", "test"):
        if getattr(data, split) is None and getattr(data, f"max_{split}_samples") is not None:
            keys, why = (f"max_{split}_samples",), f"data.{split} is null"
            yield from idle("data", data, keys, why, f"name a split or file in data.{split}.")


def embedded_data_exist(data: DataSection) -> Iterator[Problem]:
    known = [PREFIX + name for name in FOLDERS if name != "llama"]
    if data.path.startswith(PREFIX) and data.path not in known:
        yield unknown_embedded("data.path", data.path, known)


def embedded_data_have_no_configuration(data: DataSection) -> Iterator[Problem]:
    if data.path.startswith(PREFIX):
        why = "embedded data come with sktune itself"
        yield from idle("data", data, ("name", "revision"), why, "name a hub dataset in data.path.")


RULES = (
    pairs_need_a_second_column,
    pairs_are_not_tagged,
    pair_template_needs_a_pair,
    pair_template_names_both_texts,
    columns_belong_to_the_task,
    conll_holds_tagged_words,
    conll_columns_need_conll,
    sample_limits_need_their_split,
    embedded_data_exist,
    embedded_data_have_no_configuration,
)
