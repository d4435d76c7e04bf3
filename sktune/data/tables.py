"""Reading tables of examples: hub datasets and parquet through the `datasets` library, text files as they are."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sktune.data.table import Table
from sktune.data.text_tables import read_json, read_separated
from sktune.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# Names that load_dataset would take for a reader of whatever lies in the working directory.
_READERS = ("csv", "json", "parquet", "text", "arrow", "conll", "pandas", "webdataset", "xml")


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> Table:
    """A split of a hub dataset (or of a local folder laid out like one); no loading script is ever run.

    Raises:
        UserError: with the library's reason, where the split cannot be read.
    """
    if path in _READERS:
        raise UserError(f"data.path: {path!r} is a format. Give the folder there, and the format as data.format.")
    import datasets  # a second to import, where it is used

    where = f"split {split!r} of {path}" + (f" ({name})" if name else "")
    try:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise UserError(
            f"cannot read {where}: {_reason(error)} "
            "Check data.path, data.name, data.revision and the split names; a local folder must exist."
        ) from error
    return _table(dataset, where)


def read_table(path: Path, format: str, encoding: str | None = None, names: Sequence[str] | None = None) -> Table:
    """A local file as a table.

    The cells of .csv and .tsv files stay text (`NA` and `007` are what they look like; no quoting in .tsv),
    and their first line names the columns. A .json file holds lines of objects, or one list of them.

    Args:
        path: the file.
        format: `jsonl`, `csv`, `tsv` or `parquet`.
        encoding: as `data.encoding`.
        names: of the columns of a .csv or .tsv file whose first line is a row; None: that line names them.

    Raises:
        UserError: naming the file (and the line of text) that cannot be read.
    """
    if format == "jsonl":
        return read_json(path, encoding)
    if format in ("csv", "tsv"):
        return read_separated(path, format, encoding, names)
    import datasets

    try:
        dataset = datasets.load_dataset(format, data_files=glob.escape(str(path)), split="train")
    except Exception as error:  # every failure of a foreign library, in one clear line
        raise UserError(f"{path}: cannot be read as {format}: {_reason(error)}") from error
    return _table(dataset, str(path))


def _table(dataset: Dataset, where: str) -> Table:
    import datasets

    coded = {}
    for column, feature in dataset.features.items():
        feature = getattr(feature, "feature", feature)  # a list of codes is coded too
        if isinstance(feature, datasets.ClassLabel):
            coded[column] = tuple(feature.names)
    names = dataset.column_names
    return Table(where, len(dataset), names, coded, lambda columns: dataset.select_columns(columns)[:])


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.rstrip('.!')}."
