"""Local data files: which file a split means, and in which format it is written."""

from __future__ import annotations

import csv
from pathlib import Path

from sktune.data.conll import read_lines
from sktune.embedded import is_embedded, resolve
from sktune.sections import DataSection

_CONLL = (".conll", ".iob", ".iob2", ".bio", ".txt")
_TABLES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
ENDINGS = (*_CONLL, *_TABLES)


def local_folder(data: DataSection) -> Path | None:
    """The folder that `data.path` means, or None where it is a hub dataset.

    `format: hub` always means the hub's way of reading, of an id or of a local folder laid out like a hub
    repository; otherwise an existing folder is local, and so is whatever looks like a path.

    Raises:
        ValueError: for a path that must be local and is no folder.
    """
    if is_embedded(data.path):
        return resolve(data.path, "data")
    folder = Path(data.path).expanduser()
    if data.format == "hub":
        return None
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(
            f"data.path: {data.path} is a file. Set data.path to its folder ({folder.parent}) and data.train "
            f"to its name ({folder.name})."
        )
    if data.format != "auto" or data.path.startswith((".", "/", "~")) or Path(data.train).is_absolute():
        raise ValueError(f"data.path: there is no folder {data.path}. Give an existing folder or a hub dataset id.")
    return None


def find_file(folder: Path, name: str, field: str) -> Path:
    """The file that the recipe's `field` means: `name` inside `folder`, with or without its ending.

    Raises:
        ValueError: listing the files there, when none or several fit; or for a `save_to_disk` folder.
    """
    exact = folder / Path(name).expanduser()
    for candidate in (folder, exact):
        if any((candidate / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            raise ValueError(
                f"{field}: {candidate} was written by datasets.save_to_disk, a cache, no data format. Write "
                "parquet instead: datasets.load_from_disk(folder)['train'].to_parquet('train.parquet')"
            )
    if exact.is_file():
        return exact
    fitting = [p for ending in ENDINGS if (p := exact.with_name(exact.name + ending)).is_file()]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(p.name for p in fitting)
        raise ValueError(f"{field}: {name!r} could be any of {names} in {folder}. Write the whole file name.")
    there = exact.parent if exact.parent.is_dir() else folder
    files = sorted(p.name for p in there.iterdir() if p.is_file())
    raise ValueError(
        f"{field}: there is no file {name!r} (nor with one of {', '.join(ENDINGS)}) in {there}. "
        f"Files there: {', '.join(files) or 'none'}."
        + (" Set it to null to go without." if field != "data.train" else "")
    )


def file_format(path: Path, data: DataSection, task: str, *, words: bool) -> str:
    """`conll`, `jsonl`, `csv`, `tsv` or `parquet`: as the recipe says, else by the file's ending.

    A .tsv file of tagged words is CoNLL unless its first line names `data.words_column` or `data.tags_column`.

    Args:
        path: the file.
        data: the recipe's section.
        task: its name, for messages.
        words: whether the task reads tagged words.

    Raises:
        ValueError: for CoNLL where no tagged words are read, and for an ending that says nothing.
    """
    if data.format not in ("auto", "hub"):
        if data.format == "conll" and not words:
            raise ValueError(f"data.format: conll holds tagged words, but task.name is {task}.")
        return data.format
    ending = path.suffix.lower()
    if words and ending == ".tsv":
        header = set(read_lines(path)[0].split("\t"))
        return "tsv" if header & {data.words_column, data.tags_column} else "conll"
    if words and ending in _CONLL:
        return "conll"
    if ending in _TABLES:
        return _TABLES[ending]
    raise ValueError(
        f"{path}: cannot tell the format for {task} from the ending {ending!r}. "
        "Set data.format to jsonl, csv, tsv, parquet" + (" or conll." if words else ".")
    )


def table_header(path: Path, format: str) -> list[str]:
    """The column names in the first line of a .csv or .tsv file.

    Raises:
        ValueError: for a file without rows, a first line that names a column twice or fewer columns than the
            second line has, and for bytes that are not UTF-8.
    """
    lines = read_lines(path)
    records = csv.reader(lines) if format == "csv" else (line.split("\t") for line in lines)
    filled = (record for record in records if any(record))
    names, first = next(filled, []), next(filled, [])
    if not names or not first:
        raise ValueError(f"{path} holds no rows; its first line must name the columns.")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: a column name occurs twice in the first line: {', '.join(names)}.")
    if len(first) > len(names):
        # pandas would take the surplus column for row names and shift all the others
        raise ValueError(
            f"{path}: the first line names {len(names)} columns, the second has {len(first)}. "
            "The first line must name every column."
        )
    return names
