"""Tables of examples through the `datasets` library: hub datasets, JSON lines, CSV, TSV and parquet."""

from __future__ import annotations

import csv
import difflib
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sktune.data.conll import read_lines
from sktune.data.files import table_header


@dataclass(frozen=True)
class Table:
    """A split as columns; `where` names its file or hub split in messages."""

    dataset: datasets.Dataset
    where: str

    def columns(self, wanted: dict[str, str]) -> dict[str, list[Any]]:
        """The values of the columns that the recipe names.

        Args:
            wanted: recipe field -> column name, as `{"data.text_column": "text"}`.

        Returns:
            Recipe field -> values, one per row.

        Raises:
            ValueError: naming the field and the columns there are, for a column that is not there.
        """
        there = self.dataset.column_names
        for field, column in wanted.items():
            if column not in there:
                near = difflib.get_close_matches(column, there, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Set {field} to one of them."
                listed = ", ".join(there)
                raise ValueError(f"{field}: no column {column!r} in {self.where}. Columns: {listed}.{hint}")
        values = self.dataset.select_columns(list(dict.fromkeys(wanted.values())))[:]
        return {field: values[column] for field, column in wanted.items()}

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The names of an integer-coded column (ClassLabel, or lists of it) in their order, or None."""
        feature = self.dataset.features[column]
        feature = getattr(feature, "feature", feature)
        return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> Table:
    """A split of a hub dataset (or of a local folder laid out like one); no loading script is ever run."""
    where = f"split {split!r} of {path}" + (f" ({name})" if name else "")
    try:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise ValueError(
            f"cannot read {where}: {_reason(error)} "
            "Check data.path, data.name, data.revision and the split names; a local folder must exist."
        ) from error
    return Table(dataset, where)


def read_table(path: Path, format: str) -> Table:
    """A local file as a table.

    The cells of .csv and .tsv files stay text (`NA` and `007` are what they look like; no quoting in .tsv),
    and their first line names the columns.
    """
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
    elif format == "jsonl":
        _refuse_empty(read_lines(path), path)
    builder = {"jsonl": "json", "tsv": "csv"}.get(format, format)
    try:
        dataset = datasets.load_dataset(builder, data_files=glob.escape(str(path)), split="train", **arguments)
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise ValueError(f"{path}: cannot be read as {format}: {_reason(error)}") from error
    return Table(dataset, str(path))


def _refuse_empty(lines: Sequence[str], path: Path) -> None:
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}: the file is empty.")


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.rstrip('.')}."
