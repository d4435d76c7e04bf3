"""One split of a recipe as examples, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune.data.conll import read_conll
from sktune.data.examples import Example
from sktune.data.files import file_format, find_file
from sktune.data.labels import label_names, named, numbers
from sktune.data.tables import Table, read_hub, read_table
from sktune.data.tags import is_entity_tag, to_iob2
from sktune.sections import DataSection

if TYPE_CHECKING:
    from sktune.tasks.config import TaskConfig


@dataclass(frozen=True)
class Reading:
    """A whole split: its labelled examples, the data set's own label names, and where it came from."""

    examples: list[Example]
    unlabelled: int
    class_names: tuple[str, ...] | None
    where: str
    report: list[str]


def read_split(data: DataSection, task: TaskConfig, folder: Path | None, name: str, split: str) -> Reading:
    """Read the hub split or file `name` as the `split` (train, validation or test) of a run.

    Raises:
        ValueError: with the file or split and what to do, for whatever cannot be read.
    """
    if folder is None:
        table = read_hub(data.path, data.name, name, data.revision)
    else:
        path = find_file(folder, name, f"data.{split}")
        format = file_format(path, data, task)
        if format == "conll":
            return _read_sentences(path, data, split)
        table = read_table(path, format)
    if not table.length:
        raise ValueError(f"{table.where} holds no rows.")
    reader = _tagged_rows if task.name == "token_classification" else _text_rows
    return reader(table, data, task, split)


def _read_sentences(path: Path, data: DataSection, split: str) -> Reading:
    sentences = read_conll(path, data.conll_word_column, data.conll_tag_column)
    if not sentences:
        raise ValueError(f"{path} holds no sentences.")
    tags, conversion = to_iob2([sentence.tags for sentence in sentences])
    examples = [Example(row=row, words=sentence.words, reference=tags[row]) for row, sentence in enumerate(sentences)]
    return Reading(examples, 0, None, str(path), [f"{split}: {conversion}"] if conversion else [])


def _tagged_rows(table: Table, data: DataSection, task: TaskConfig, split: str) -> Reading:
    fields = {"data.words_column": data.words_column, "data.tags_column": data.tags_column}
    columns = table.columns(fields)
    class_names = table.coded.get(data.tags_column)
    rows: list[int] = []
    all_words: list[tuple[str, ...]] = []
    all_tags: list[tuple[str, ...]] = []
    empty = unlabelled = 0
    for row, (cell, tag_cell) in enumerate(zip(*columns.values(), strict=True)):
        where = f"{table.where}, row {row}"
        words = tuple(str(word) for word in _items(cell, where, "data.words_column"))
        if not words:
            empty += 1
            continue
        if tag_cell is None or (class_names is not None and all(tag == -1 for tag in tag_cell)):
            unlabelled += 1
            continue
        values = _items(tag_cell, where, "data.tags_column")
        tags = tuple(named(value, class_names, task.given_labels, where) for value in values)
        if len(tags) != len(words):
            raise ValueError(f"{where}: {len(words)} words but {len(tags)} tags.")
        _check_tags(tags, where)
        rows.append(row)
        all_words.append(words)
        all_tags.append(tags)
    iob2, conversion = to_iob2(all_tags)
    examples = [
        Example(row=row, words=words, reference=tags) for row, words, tags in zip(rows, all_words, iob2, strict=True)
    ]
    report = [f"{split}: {conversion}"] if conversion else []
    if empty:
        report.append(f"{split}: {empty} rows without words dropped")
    return Reading(examples, unlabelled, class_names, table.where, report)


def _items(cell: Any, where: str, field: str) -> Sequence[Any]:
    """A list cell; in the text cells of .csv and .tsv files, items are separated by blanks."""
    if cell is None:
        return ()
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, list):
        return cell
    raise ValueError(f"{where}: {field} must hold a list (or blank-separated text), not {cell!r}.")


def _check_tags(tags: Sequence[str], where: str) -> None:
    for tag in tags:
        if tag.isdigit():
            raise ValueError(
                f"{where}: the tag {tag} is a number without a name. List the tags' names in task.labels, in "
                "the order of their numbers."
            )
        if not is_entity_tag(tag):
            raise ValueError(f"{where}: {tag!r} is no tag of IOB1, IOB2, BIOES or BILOU (O, B-TYPE, I-TYPE ...).")


def _text_rows(table: Table, data: DataSection, task: TaskConfig, split: str) -> Reading:
    fields = {"data.text_column": data.text_column}
    if data.text_pair_column is not None:
        fields["data.text_pair_column"] = data.text_pair_column
    elif task.name == "pair_classification":
        raise ValueError("data.text_pair_column: pair_classification reads two texts; name the second's column.")
    free_text = task.new_tokens > 0
    if free_text and data.target_column is None:
        raise ValueError("data.target_column: causal_lm needs a column of target texts, or task.label_words.")
    answer = "data.target_column" if free_text else "data.label_column"
    fields[answer] = str(data.target_column) if free_text else data.label_column
    columns = table.columns(fields)

    class_names: tuple[str, ...] | None = None
    references: Sequence[str | float | None]
    if free_text:
        references = [None if value is None else str(value) for value in columns[answer]]
    elif task.name == "regression":
        references = numbers(columns[answer], table.where)
    else:
        class_names = table.coded.get(data.label_column)
        references = label_names(columns[answer], class_names, task.given_labels, table.where)

    texts = columns["data.text_column"]
    pairs = columns.get("data.text_pair_column", [None] * len(texts))
    examples = [
        Example(
            row=row,
            text=_text(text, table.where, row, "data.text_column"),
            text_pair=None if data.text_pair_column is None else _text(pair, table.where, row, "data.text_pair_column"),
            reference=reference,
        )
        for row, (text, pair, reference) in enumerate(zip(texts, pairs, references, strict=True))
        if reference is not None
    ]
    return Reading(examples, len(texts) - len(examples), class_names, table.where, [])


def _text(value: Any, where: str, row: int, field: str) -> str:
    if value is None:
        raise ValueError(f"{where}, row {row}: {field} is null. Drop the row, or give it a text (it may be '').")
    return str(value)
