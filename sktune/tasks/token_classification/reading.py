"""Tables of tagged words as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sktune.data import Example, Reading
from sktune.data.cells import as_text
from sktune.data.labels import named
from sktune.data.table import Table
from sktune.data.tags import is_entity_tag, to_iob2
from sktune.errors import UserError
from sktune.sections import DataSection


def read_tagged_words(
    table: Table, data: DataSection, labels: Sequence[str] | None, split: str, *, entities: bool = True
) -> Reading:
    """The sentences of a table, tags of entities converted to IOB2.

    Args:
        table: a sentence a row, with a list of words and a list of tags.
        data: names the columns.
        labels: of the recipe; the names of tags that are numbers.
        split: its name, for the report.
        entities: whether the tags are of entities; else they are kept as they are.

    Raises:
        UserError: naming the row, for words and tags of different number, and tags that are none.
    """
    fields = {"data.words_column": data.words_column, "data.tags_column": data.tags_column}
    columns = table.columns(fields)
    class_names = table.coded.get(data.tags_column)
    rows: list[int] = []
    all_words: list[tuple[str, ...]] = []
    all_tags: list[tuple[str, ...]] = []
    empty = unlabelled = 0
    for row, (cell, tag_cell) in enumerate(zip(*columns.values(), strict=True)):
        where = f"{table.where}, row {row}"
        words = tuple(_word(word, where) for word in _items(cell, where, "data.words_column"))
        if not words:
            empty += 1
            continue
        if tag_cell is None or (class_names is not None and all(tag == -1 for tag in tag_cell)):
            unlabelled += 1
            continue
        values = _items(tag_cell, where, "data.tags_column")
        tags = tuple(named(value, class_names, labels, where) for value in values)
        if len(tags) != len(words):
            raise UserError(f"{where}: {len(words)} words but {len(tags)} tags.")
        if entities:
            _check_tags(tags, where)
        rows.append(row)
        all_words.append(words)
        all_tags.append(tags)
    iob2, conversion = to_iob2(all_tags) if entities else (all_tags, None)
    examples = [
        Example(row=row, words=words, reference=tags) for row, words, tags in zip(rows, all_words, iob2, strict=True)
    ]
    report = [*table.report, *([f"{split}: {conversion}"] if conversion else [])]
    if empty:
        report.append(f"{split}: {empty} rows without words dropped")
    return Reading(examples, unlabelled, class_names, table.where, report)


def _word(value: Any, where: str) -> str:
    word = as_text(value, f"{where}: data.words_column", what="a list of words is needed")
    if word is None:
        raise UserError(f"{where}: data.words_column holds a word that is null. Drop it with its tag.")
    return word


def _items(cell: Any, where: str, field: str) -> Sequence[Any]:
    """A list cell; in the text cells of .csv and .tsv files, items are separated by blanks."""
    if cell is None:
        return ()
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, list):
        return cell
    raise UserError(f"{where}: {field} must hold a list (or blank-separated text), not {cell!r}.")


def _check_tags(tags: Sequence[str], where: str) -> None:
    for tag in tags:
        if tag.isdigit():
            raise UserError(
                f"{where}: the tag {tag} is a number without a name. List the tags' names in task.labels, in "
                "the order of their numbers."
            )
        if not is_entity_tag(tag):
            raise UserError(
                f"{where}: {tag!r} is no tag of IOB1, IOB2, BIOES or BILOU (O, B-TYPE, I-TYPE ...); "
                "tags that are no entities, such as parts of speech, need task.scheme: plain."
            )
