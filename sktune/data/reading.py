"""One split of a recipe as a table, whatever it is stored as, and as the examples that its task reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sktune.data.conll import read_conll
from sktune.data.examples import Reading
from sktune.data.files import file_format, find_files
from sktune.data.table import Table, joined
from sktune.data.tables import read_hub, read_table
from sktune.errors import UserError
from sktune.sections import DataSection


class Reader(Protocol):
    """What reading the data asks of a task."""

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        ...

    @property
    def reads_words(self) -> bool:
        """Whether an example is a list of tagged words."""
        ...

    @property
    def reads_entities(self) -> bool:
        """Whether the tags of words spell entities; else each tag stands for itself."""
        ...

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        """The examples of a split, in the table's order."""
        ...

    def label_set(self, train: Reading) -> tuple[str, ...] | None:
        """The label set in order, of the whole training split or the recipe; None where there is none."""
        ...


def read_split(data: DataSection, task: Reader, folder: Path | None, names: tuple[str, ...], split: str) -> Reading:
    """Read hub splits or files as the `split` (train, validation or test) of a run, one after the other.

    Raises:
        UserError: with the file or split and what to do, for whatever cannot be read.
    """
    if folder is None:
        _no_encoding(data, "of a hub dataset")
        table = read_hub(data.path, data.name, "+".join(names), data.revision)
    else:
        table = joined([_read_file(path, data, task) for path in find_files(folder, names, f"data.{split}")])
    if not table.length:
        raise UserError(f"{table.where} holds no rows.")
    return task.read(table, data, split)


def _read_file(path: Path, data: DataSection, task: Reader) -> Table:
    format = file_format(path, data, task.name, words=task.reads_words)
    if data.column_names is not None and format not in ("csv", "tsv"):
        raise UserError(f"data.column_names: {path} is no table of a text file, and names its columns; leave it out.")
    if format == "conll":
        return _sentences(path, data, task.reads_entities)
    if format == "parquet":
        _no_encoding(data, "of parquet")
    return read_table(path, format, data.encoding, data.column_names)


def _no_encoding(data: DataSection, what: str) -> None:
    if data.encoding is not None:
        raise UserError(f"data.encoding: {data.encoding} would do nothing: the texts {what} are UTF-8; leave it out.")


def _sentences(path: Path, data: DataSection, entities: bool) -> Table:
    """A CoNLL file as a table: a sentence a row, its words and its tags in the columns that the recipe names."""
    columns_of = (data.conll_word_column, data.conll_tag_column)
    sentences = read_conll(path, *columns_of, data.encoding, entities=entities)
    if not sentences:
        raise UserError(f"{path} holds no sentences.")
    columns = {
        data.words_column: [list(sentence.words) for sentence in sentences],
        data.tags_column: [list(sentence.tags) for sentence in sentences],
    }
    return Table(str(path), len(sentences), list(columns), {}, lambda wanted: {name: columns[name] for name in wanted})
