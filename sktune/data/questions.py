"""Texts that a trained adapter is asked about: of the command line, or of a file in any format that training reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktune.data.cells import as_text
from sktune.data.conll import read_words
from sktune.data.files import ENDINGS, file_format
from sktune.data.table import Table, value_at
from sktune.data.tables import read_table
from sktune.data.text_files import ending, read_lines
from sktune.data.text_tables import each_record
from sktune.errors import UserError
from sktune.sections import DataSection

FORMATS = ("auto", "text", "conll", "jsonl", "csv", "tsv", "parquet")
_OF_WORDS_ALONE = (".conll", ".iob", ".iob2", ".bio", ".conllu")


@dataclass(frozen=True, slots=True)
class Question:
    """One text, pair or sentence of words.

    place: how messages call it, `text 3` or `reviews.csv:17`.
    line: number of its (first) line in the file, or of its row where a file has no lines; None without a file.
    text, text_pair: the text or texts; of words, these separated by blanks.
    words: of a sentence that came as words.
    """

    place: str
    line: int | None
    text: str
    text_pair: str | None = None
    words: tuple[str, ...] | None = None


def read_questions(
    path: Path, format: str, data: DataSection, task: str, *, words: bool
) -> Iterator[Question | UserError]:
    """The questions of a file in its order; in the place of one that cannot be read, what is wrong with it.

    Blank lines of a plain text are questions too; of tables and CoNLL files they are none.

    Args:
        path: the file.
        format: one of `FORMATS`; auto: by the file's ending, and plain text where that says nothing.
        data: names columns and encoding.
        task: its name, for messages.
        words: whether the task tags words. A plain text, and the text column of a table without `data.words_column`, is
            then split at white space.

    Raises:
        UserError: for a file that cannot be read at all, and a column that is not there.
    """
    if not path.is_file():
        raise UserError(f"--file: {path} cannot be read: it is {'a folder' if path.is_dir() else 'not there'}")
    format = _format_of(path, data, task, words=words) if format == "auto" else format
    if format == "text":
        yield from _lines(path, data)
    elif format == "conll" and not words:
        raise UserError(f"--format: conll holds words, and {task} reads texts; allowed: text, jsonl, csv, tsv, parquet")
    elif format == "conll":
        for line, found in read_words(path, data.conll_word_column, data.encoding):
            yield (
                found
                if isinstance(found, UserError)
                else Question(f"{path}:{line}", line, " ".join(found), None, found)
            )
    else:
        yield from _records(path, format, data, words)


def _format_of(path: Path, data: DataSection, task: str, *, words: bool) -> str:
    suffix = ending(path)
    if suffix in _OF_WORDS_ALONE:
        return "conll"
    if suffix not in ENDINGS or suffix == ".txt":
        return "text"
    return file_format(path, data.model_copy(update={"format": "auto"}), task, words=words)


def _lines(path: Path, data: DataSection) -> Iterator[Question]:
    if data.text_pair_column is not None:
        raise UserError(
            f"--file: {path} is plain text, and this adapter was trained on pairs; give a .jsonl, .csv, .tsv or "
            f".parquet file with the columns {data.text_column} and {data.text_pair_column}"
        )
    lines = read_lines(path, data.encoding)
    if lines[-1] == "":
        lines.pop()  # the last newline ends a line, and begins none
    for number, line in enumerate(lines, start=1):
        yield Question(f"{path}:{number}", number, line)


def _records(path: Path, format: str, data: DataSection, words: bool) -> Iterator[Question | UserError]:
    records = list(_each(path, format, data))
    known = {name for _, record in records if not isinstance(record, UserError) for name in record}
    # As training does, a column that no row has is an error of the file, not of its rows.
    table = Table(str(path), len(records), sorted(known), {}, lambda wanted: {name: [] for name in wanted})
    as_words = words and (data.words_column in known or data.text_column not in known)
    wanted = {"data.words_column": data.words_column} if as_words else {"data.text_column": data.text_column}
    if data.text_pair_column is not None:
        wanted["data.text_pair_column"] = data.text_pair_column
    if known:
        table.columns(wanted)
    for line, record in records:
        if isinstance(record, UserError):
            yield record
            continue
        try:
            yield _question(f"{path}:{line}", line, record, wanted)
        except UserError as error:
            yield error


def _question(place: str, line: int, record: Mapping[str, Any], wanted: Mapping[str, str]) -> Question:
    cells = {field: value_at(record, column, f"{place}: {field}") for field, column in wanted.items()}
    if "data.words_column" in cells:
        cell = cells["data.words_column"]
        items = cell.split() if isinstance(cell, str) else cell
        if not isinstance(items, list):
            raise UserError(f"{place}: data.words_column must hold a list of words, or a text, not {str(cell)[:60]!r}")
        words = tuple(_text(item, f"{place}: data.words_column") for item in items)
        return Question(place, line, " ".join(words), None, words)
    text, *pair = (_text(cell, f"{place}: {field}") for field, cell in cells.items())
    return Question(place, line, text, pair[0] if pair else None)


def _text(cell: Any, where: str) -> str:
    text = as_text(cell, where)
    if text is None:
        raise UserError(f"{where} is null; give it a text (it may be '')")
    return text


def _each(path: Path, format: str, data: DataSection) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    if format != "parquet":
        yield from each_record(path, format, data.encoding, data.column_names)
        return
    table = read_table(path, format)
    columns = table.fetch(table.names)
    for row in range(table.length):
        yield row + 1, {name: columns[name][row] for name in table.names}
