"""Tables of examples: hub datasets, CSV, TSV and parquet through the `datasets` library, and JSON lines."""

from __future__ import annotations

import csv
import difflib
import glob
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sktune.data.conll import read_lines
from sktune.data.files import table_header
from sktune.errors import UserError

# Names that load_dataset would take for a reader of whatever lies in the working directory.
_READERS = ("csv", "json", "parquet", "text", "arrow", "conll", "pandas", "webdataset", "xml")


@dataclass(frozen=True)
class Table:
    """A split as columns.

    Attributes:
        where: its file or hub split, for messages.
        length: number of rows.
        names: names of its columns.
        coded: names of the classes of each integer-coded column, in their order.
        fetch: the values of the columns asked for.
    """

    where: str
    length: int
    names: list[str]
    coded: Mapping[str, tuple[str, ...]]
    fetch: Callable[[list[str]], Mapping[str, list[Any]]]

    def columns(self, wanted: Mapping[str, str]) -> dict[str, list[Any]]:
        """The values of the columns that the recipe names.

        Args:
            wanted: recipe field -> column name, as `{"data.text_column": "text"}`.

        Returns:
            Recipe field -> values, one per row.

        Raises:
            UserError: naming the field and the columns there are, for a column that is not there.
        """
        for field, column in wanted.items():
            if column not in self.names:
                near = difflib.get_close_matches(column, self.names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Set {field} to one of them."
                listed = ", ".join(self.names)
                raise UserError(f"{field}: no column {column!r} in {self.where}. Columns: {listed}.{hint}")
        values = self.fetch(list(dict.fromkeys(wanted.values())))
        return {field: values[column] for field, column in wanted.items()}


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> Table:
    """A split of a hub dataset (or of a local folder laid out like one); no loading script is ever run.

    Raises:
        UserError: with the library's reason, where the split cannot be read.
    """
    if path in _READERS:
        raise UserError(f"data.path: {path!r} is a format. Give the folder there, and the format as data.format.")
    where = f"split {split!r} of {path}" + (f" ({name})" if name else "")
    try:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise UserError(
            f"cannot read {where}: {_reason(error)} "
            "Check data.path, data.name, data.revision and the split names; a local folder must exist."
        ) from error
    return _table(dataset, where)


def read_table(path: Path, format: str) -> Table:
    """A local file as a table.

    The cells of .csv and .tsv files stay text (`NA` and `007` are what they look like; no quoting in .tsv),
    and their first line names the columns. A .json file holds lines of objects, or one list of them.

    Raises:
        UserError: naming the file (and the line of JSON) that cannot be read.
    """
    if format == "jsonl":
        return _read_json(path)
    arguments: dict[str, Any] = {}
    if format in ("csv", "tsv"):
        columns = table_header(path, format)
        arguments = {
            "features": datasets.Features({column: datasets.Value("string") for column in columns}),
            "sep": "\t" if format == "tsv" else ",",
            "quoting": csv.QUOTE_NONE if format == "tsv" else csv.QUOTE_MINIMAL,
            "keep_default_na": False,
            "encoding": "utf-8-sig",
        }
    builder = "csv" if format == "tsv" else format
    try:
        dataset = datasets.load_dataset(builder, data_files=glob.escape(str(path)), split="train", **arguments)
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise UserError(f"{path}: cannot be read as {format}: {_reason(error)}") from error
    return _table(dataset, str(path))


def _table(dataset: datasets.Dataset, where: str) -> Table:
    coded = {}
    for column, feature in dataset.features.items():
        feature = getattr(feature, "feature", feature)  # a list of codes is coded too
        if isinstance(feature, datasets.ClassLabel):
            coded[column] = tuple(feature.names)
    names = dataset.column_names
    return Table(where, len(dataset), names, coded, lambda columns: dataset.select_columns(columns)[:])


def _read_json(path: Path) -> Table:
    # Not through `datasets`: its reader turns text that looks like a date into a timestamp.
    lines = read_lines(path)
    content = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if content and content[0][1].lstrip().startswith("["):
        rows = _parse("\n".join(lines), path, 1)
    else:
        rows = [_parse(line, path, number) for number, line in content]
    names: dict[str, None] = {}
    for row, values in enumerate(rows):
        if not isinstance(values, dict):
            raise UserError(f"{path}, row {row}: a JSON object with the columns is needed, not {values!r}.")
        names.update(dict.fromkeys(values))
    return Table(str(path), len(rows), list(names), {}, lambda columns: {c: [r.get(c) for r in rows] for c in columns})


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: not JSON: {error.msg} at column {error.colno}.") from None


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.rstrip('.!')}."
