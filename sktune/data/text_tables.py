"""Tables in text files: cells between commas or tabs, and JSON lines, as they are written."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sktune.data.table import Table
from sktune.data.text_files import read_lines, read_text
from sktune.errors import UserError

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def read_separated(path: Path, format: str, encoding: str | None, given: Sequence[str] | None = None) -> Table:
    # Not through `datasets`: pandas would guess types, and give names to surplus columns.
    records, names = _with_names(path, format, encoding, given)
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    broken: list[int] = []
    row = 0
    for row, (line, cells) in enumerate(records, start=1):
        if len(cells) > len(names):
            who = "data.column_names" if given else "the first line"
            quoted = '; a cell with a comma in it needs quotes (").' if format == "csv" else "."
            raise UserError(
                f"{path}: {who} names {len(names)} columns, line {line} has {len(cells)} cells. Name every column there"
                + quoted
            )
        for name, cell in zip_longest(names, cells):
            columns[name].append(cell)
        if any("\n" in cell or "\r" in cell for cell in cells):
            broken.append(row - 1)
    if not row:
        raise UserError(f"{path} holds no rows; its first line must name the columns.")
    report = []
    if broken:
        report.append(
            f"{path}: {len(broken)} of {row} rows have a cell over several lines (the first: row {broken[0]}); where "
            'that is not meant, a quote (") that nothing closes has swallowed rows'
        )
    return Table(str(path), row, names, {}, lambda wanted: {name: columns[name] for name in wanted}, report)


def each_record(
    path: Path, format: str, encoding: str | None, given: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """(number of its line, cells by column) of each record, or what is wrong with that one.

    Args:
        path: the file.
        format: `jsonl`, `csv` or `tsv`; a list of objects in a .json file counts its rows instead of lines.
        encoding: as `data.encoding`.
        given: as `data.column_names`.

    Raises:
        UserError: for a file that cannot be read at all.
    """
    if format == "jsonl":
        lines = read_lines(path, encoding)
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):
            yield from enumerate((_object(item, path, n) for n, item in enumerate(_list_of(lines, path))), start=1)
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, _object(_parse(line, path, number), path, number)
                except UserError as error:
                    yield number, error
        return
    records, names = _with_names(path, format, encoding, given)
    for number, cells in records:
        if len(cells) > len(names):
            yield (
                number,
                UserError(f"{path}:{number}: {len(cells)} cells under the {len(names)} columns of the first line"),
            )
        else:
            yield number, dict(zip_longest(names, cells))


def _with_names(
    path: Path, format: str, encoding: str | None, given: Sequence[str] | None
) -> tuple[Iterator[tuple[int, list[str]]], list[str]]:
    """The records that hold rows, and the names of their columns."""
    records = _records(path, format, encoding)
    names = list(given) if given is not None else next(records, (0, []))[1]
    if len(set(names)) < len(names):
        where = f"{path}: a column name occurs twice in the first line" if given is None else "data.column_names: twice"
        raise UserError(f"{where}: {', '.join(names)}.")
    return records, names


def _list_of(lines: list[str], path: Path) -> list[Any]:
    content = _parse("\n".join(lines), path, 1)
    return content if isinstance(content, list) else [content]


def _object(value: Any, path: Path, number: int) -> dict[str, Any] | UserError:
    if not isinstance(value, dict):
        return UserError(f"{path}:{number}: a JSON object with the columns is needed, not {str(value)[:60]!r}")
    content: dict[str, Any] = _without_lone_surrogates(value)
    return content


def _records(path: Path, format: str, encoding: str | None) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each record that is not blank."""
    if format == "tsv":
        for number, line in enumerate(read_lines(path, encoding), start=1):
            if line.strip(" "):
                yield number, line.split("\t")
        return
    limit = csv.field_size_limit(sys.maxsize)  # texts are long
    try:
        reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""))
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip(" ")):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: cannot be read as csv: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def read_json(path: Path, encoding: str | None) -> Table:
    # Not through `datasets`: its reader turns text that looks like a date into a timestamp.
    lines = read_lines(path, encoding)
    content = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if content and content[0][1].lstrip().startswith("["):
        rows = _parse("\n".join(lines), path, 1)
    else:
        rows = [_parse(line, path, number) for number, line in content]
    names: dict[str, None] = {}
    replaced = 0
    for row, values in enumerate(rows):
        if not isinstance(values, dict):
            raise UserError(f"{path}, row {row}: a JSON object with the columns is needed, not {values!r}.")
        names.update(dict.fromkeys(values))
        whole = _without_lone_surrogates(values)
        if whole != values:
            rows[row] = whole
            replaced += 1
    report = []
    if replaced:
        report.append(f"{path}: {replaced} rows with half a character (a lone surrogate), read as U+FFFD")
    columns = lambda wanted: {column: [values.get(column) for values in rows] for column in wanted}  # noqa: E731
    return Table(str(path), len(rows), list(names), {}, columns, report)


def _without_lone_surrogates(value: Any) -> Any:
    """JSON may escape half of a character outside the BMP, which no file can hold in UTF-8."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_lone_surrogates(item) for key, item in value.items()}
    return value


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: not JSON: {error.msg} at column {error.colno}.") from None
    except (RecursionError, ValueError):  # brackets inside each other, a number of thousands of digits
        raise UserError(
            f"{path}:{first_line}: not JSON that can be read: nested too deep, or a number too long."
        ) from None
