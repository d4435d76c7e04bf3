"""Local data files: which file a split means, and in which format it is written."""

from __future__ import annotations

import glob
from pathlib import Path

from sktune.data.conll import CONLL_U
from sktune.data.text_files import ending as ending_of
from sktune.data.text_files import read_lines
from sktune.embedded import is_embedded, must_be_here, resolve
from sktune.errors import UserError
from sktune.sections import DataSection

_CONLL = (".conll", ".iob", ".iob2", ".bio", CONLL_U, ".txt")
_TABLES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
ENDINGS = (*_CONLL, *_TABLES)


def local_folder(data: DataSection) -> Path | None:
    """The folder that `data.path` means, or None where it is a hub dataset.

    `format: hub` always means the hub's way of reading, of an id or of a local folder laid out like a hub
    repository; otherwise an existing folder is local, and so is whatever looks like a path.

    Raises:
        UserError: for a path that must be local and is no folder.
    """
    if is_embedded(data.path):
        return resolve(data.path, "data")
    folder = Path(data.path).expanduser()
    if data.format == "hub":
        return None
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(
            f"data.path: {data.path} is a file. Set data.path to its folder ({folder.parent}) and data.train "
            f"to its name ({folder.name})."
        )
    if (
        data.format != "auto"
        or must_be_here(data.path)
        or any(Path(name).is_absolute() for name in names_of(data.train))
    ):
        raise UserError(f"data.path: there is no folder {data.path}. Give an existing folder or a hub dataset id.")
    return None


def names_of(split: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names in a field of the recipe that may hold one, several or none."""
    return () if split is None else (split,) if isinstance(split, str) else split


def find_files(folder: Path, names: tuple[str, ...], field: str) -> list[Path]:
    """The files that the recipe's `field` means, each once: see `find_file`; a pattern means all that fit, by name.

    Raises:
        UserError: as `find_file`, and where a pattern fits no file.
    """
    found: list[Path] = []
    for name in names:
        place = folder / Path(name).expanduser()
        if glob.has_magic(name) and not place.is_file():
            fitting = sorted(Path(path) for path in glob.glob(str(place)) if Path(path).is_file())
            if not fitting:
                raise UserError(f"{field}: no file fits {name!r} in {folder}.")
            found += fitting
        else:
            found.append(find_file(folder, name, field))
    return list(dict.fromkeys(found))


def find_file(folder: Path, name: str, field: str) -> Path:
    """The file that the recipe's `field` means: `name` inside `folder`, with or without its ending.

    Raises:
        UserError: listing the files there, when none or several fit; or for a `save_to_disk` folder.
    """
    exact = folder / Path(name).expanduser()
    for candidate in (folder, exact):
        if any((candidate / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            raise UserError(
                f"{field}: {candidate} was written by datasets.save_to_disk, a cache, no data format. Write "
                "parquet instead: datasets.load_from_disk(folder)['train'].to_parquet('train.parquet')"
            )
    if exact.is_file():
        return exact
    endings = [ending + packed for ending in ENDINGS for packed in ("", ".gz")]
    fitting = [p for ending in endings if (p := exact.with_name(exact.name + ending)).is_file()]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(p.name for p in fitting)
        raise UserError(f"{field}: {name!r} could be any of {names} in {folder}. Write the whole file name.")
    there = exact.parent if exact.parent.is_dir() else folder
    files = sorted(p.name for p in there.iterdir() if p.is_file())
    raise UserError(
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
        UserError: for CoNLL where no tagged words are read, and for an ending that says nothing.
    """
    if data.format not in ("auto", "hub"):
        if data.format == "conll" and not words:
            raise UserError(f"data.format: conll holds tagged words, but task.name is {task}.")
        return data.format
    ending = ending_of(path)
    if words and ending == ".tsv":
        header = set(read_lines(path, data.encoding)[0].split("\t"))
        return "tsv" if header & {data.words_column, data.tags_column} else "conll"
    if words and ending in _CONLL:
        return "conll"
    if ending in _TABLES:
        return _TABLES[ending]
    raise UserError(
        f"{path}: cannot tell the format for {task} from the ending {ending!r}. "
        "Set data.format to jsonl, csv, tsv, parquet" + (" or conll." if words else ".")
    )
