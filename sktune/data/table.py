"""A split as columns, whatever it is stored as."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from sktune.errors import UserError


@dataclass(frozen=True)
class Table:
    """A split as columns.

    Attributes:
        where: its file or hub split, for messages.
        length: number of rows.
        names: names of its columns.
        coded: names of the classes of each integer-coded column, in their order.
        fetch: the values of the columns asked for.
        report: what a user should know of it.
    """

    where: str
    length: int
    names: list[str]
    coded: Mapping[str, tuple[str, ...]]
    fetch: Callable[[list[str]], Mapping[str, list[Any]]]
    report: list[str] = field(default_factory=list)

    def columns(self, wanted: Mapping[str, str]) -> dict[str, list[Any]]:
        """The values of the columns that the recipe names.

        Args:
            wanted: recipe field -> column name, as `{"data.text_column": "text"}`; `translation.en` is a
                field of the objects in a column.

        Returns:
            Recipe field -> values, one per row.

        Raises:
            UserError: naming the field and the columns there are, for a column that is not there.
        """
        for source, column in wanted.items():
            if self._root(column) not in self.names:
                near = difflib.get_close_matches(column, self.names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Set {source} to one of them."
                listed = ", ".join(self.names)
                raise UserError(f"{source}: no column {column!r} in {self.where}. Columns: {listed}.{hint}")
        values = self.fetch(list(dict.fromkeys(map(self._root, wanted.values()))))
        found: dict[str, list[Any]] = {}
        for source, column in wanted.items():
            found[source] = values[self._root(column)]
            if column not in self.names:
                rows = enumerate(found[source])
                found[source] = [_inside(cell, column, f"{self.where}, row {row}: {source}") for row, cell in rows]
        return found

    def _root(self, column: str) -> str:
        return column if column in self.names else column.partition(".")[0]


def joined(tables: Sequence[Table]) -> Table:
    """Tables one after the other, as one; its rows are counted through.

    Raises:
        UserError: where a column is not in all of them, or is coded differently.
    """
    first, *others = tables
    if not others:
        return first
    for other in others:
        if other.coded != first.coded:
            raise UserError(f"{other.where}: its classes are not those of {first.where}; give files of one data set.")

    def fetch(columns: list[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {column: [] for column in columns}
        for table in tables:
            for column, values in table.columns({column: column for column in columns}).items():
                found[column] += values
        return found

    report = [line for table in tables for line in table.report]
    starts = accumulate((table.length for table in tables), initial=0)
    begins = ", ".join(f"{start} of {table.where}" for start, table in zip(starts, tables, strict=False))
    report.append(f"rows are counted through {len(tables)} files; they begin at row {begins}")
    where = f"{first.where} and {len(others)} more"
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    return Table(where, sum(table.length for table in tables), names, first.coded, fetch, report)


def value_at(record: Mapping[str, Any], column: str, where: str) -> Any:
    """The value of one record in a column that may be `translation.en`; None where it is not there.

    Raises:
        UserError: beginning with `where`, where the column does not hold objects.
    """
    if column in record:
        return record[column]
    return _inside(record.get(column.partition(".")[0]), column, where)


def _inside(cell: Any, column: str, where: str) -> Any:
    """The value at `translation.en` of an object in the column `translation`; None where it or the object is null."""
    for key in column.split(".")[1:]:
        if cell is None:
            return None
        if not isinstance(cell, dict) or key not in cell:
            held = f"an object with {', '.join(cell)}" if isinstance(cell, dict) else type(cell).__name__
            raise UserError(f"{where}: {column!r} needs an object with {key!r} there, and this is {held}.")
        cell = cell[key]
    return cell
