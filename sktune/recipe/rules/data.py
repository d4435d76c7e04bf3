"""Rules of the data: the columns a task reads, and options that need a split or a format."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.embedded import PREFIX
from sktune.embedded.catalog import CATALOG, names_of
from sktune.errors import Problem
from sktune.recipe.rules.embedded_names import embedded_names_exist
from sktune.sections import DataSection, idle
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig


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


def text_template_is_for_single_texts(data: DataSection) -> Iterator[Problem]:
    if data.text_pair_column is not None:
        yield from idle("data", data, ("text_template",), "there are two texts", "use data.pair_template.")


def text_template_names_the_text(data: DataSection) -> Iterator[Problem]:
    if "{text}" not in data.text_template:
        yield Problem(
            "data.text_template",
            "must hold the text",
            "a text with {text} in it",
            'for example "{text}\\nSentiment:" (in double quotes, so that \\n is a new line).',
        )


def columns_belong_to_the_task(task: TaskConfig, data: DataSection) -> Iterator[Problem]:
    """Of the fields that only some tasks read, those that are given and not null."""
    everywhere = frozenset[str]().union(*(TASKS.config(name).columns for name in TASKS))
    idle_keys = [key for key in DataSection.model_fields if key in everywhere - task.columns]
    keys = [key for key in idle_keys if getattr(data, key) is not None]
    own = ", ".join(sorted(task.columns))
    readers = {key: [name for name in TASKS if key in TASKS.config(name).columns] for key in keys}
    for key in keys:
        cure = f"set task.name to one that reads it: {', '.join(readers[key])}."
        yield from idle("data", data, (key,), f"{task.name} reads {own}", cure)


def conll_holds_tagged_words(task: TaskConfig, data: DataSection) -> Iterator[Problem]:
    if data.format == "conll" and not task.reads_words:
        yield Problem(
            "data.format",
            f"CoNLL files hold tagged words, which {task.name} does not read",
            f"with {task.name}: auto, hub, jsonl, csv, tsv, parquet",
            f"choose the format of your file, or set task.name: {' or '.join(TASKS.having('reads_words'))}.",
        )


def conll_columns_need_conll(data: DataSection) -> Iterator[Problem]:
    if data.format not in ("auto", "conll"):
        keys, why = ("conll_word_column", "conll_tag_column"), f"the format is {data.format}"
        yield from idle("data", data, keys, why, "set data.format: conll.")


def column_names_are_of_text_tables(data: DataSection) -> Iterator[Problem]:
    if data.format in ("hub", "conll", "jsonl", "parquet") and data.column_names is not None:
        why = f"columns of {data.format} have names"
        yield from idle("data", data, ("column_names",), why, "set data.format: csv or tsv.")


def splits_name_something(data: DataSection) -> Iterator[Problem]:
    for split in ("train", "validation", "test"):
        if getattr(data, split) in ((), ""):
            yield Problem(f"data.{split}", "names nothing", "a file, a split, or a list of them", "name one.")


def sample_limits_need_their_split(data: DataSection) -> Iterator[Problem]:
    for split in ("validation", "test"):
        if getattr(data, split) is None and getattr(data, f"max_{split}_samples") is not None:
            keys, why = (f"max_{split}_samples",), f"data.{split} is null"
            yield from idle("data", data, keys, why, f"name a split or file in data.{split}.")


def embedded_data_exist(data: DataSection) -> Iterator[Problem]:
    yield from embedded_names_exist("data.path", data.path, "data")


def embedded_ratings_are_numbers(task: TaskConfig, data: DataSection) -> Iterator[Problem]:
    item = CATALOG.get(data.path.removeprefix(PREFIX)) if data.path.startswith(PREFIX) else None
    if item is None or item.kind != "data" or item.holds_numbers == task.reads_numbers:
        return
    with_numbers = " or ".join(TASKS.having("reads_numbers"))
    allowed = ", ".join(name for name in names_of("data") if CATALOG[name.removeprefix(PREFIX)].holds_numbers)
    if item.holds_numbers:
        message, cure = (
            f"holds numbers, not what {task.name} reads",
            f"set task.name: {with_numbers}, or leave out /ratings.",
        )
        yield Problem("data.path", message, f"{allowed}: with task.name {with_numbers}", cure)
    else:
        message, cure = f"holds labels, no numbers for {task.name}", "use one of those, or another task."
        yield Problem("data.path", message, allowed, cure)


def embedded_data_have_no_configuration(data: DataSection) -> Iterator[Problem]:
    if data.path.startswith(PREFIX):
        why = "embedded data are one fixed version"
        yield from idle("data", data, ("name", "revision"), why, "name a hub dataset in data.path.")


RULES = (
    pair_template_needs_a_pair,
    pair_template_names_both_texts,
    text_template_is_for_single_texts,
    text_template_names_the_text,
    columns_belong_to_the_task,
    conll_holds_tagged_words,
    conll_columns_need_conll,
    column_names_are_of_text_tables,
    splits_name_something,
    sample_limits_need_their_split,
    embedded_data_exist,
    embedded_ratings_are_numbers,
    embedded_data_have_no_configuration,
)
