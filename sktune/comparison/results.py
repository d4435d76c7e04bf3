"""What a comparison consists of and how far it is, as `comparison.json` keeps it; written whole after every change."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sktune.comparison.cells import Cell
from sktune.errors import UserError
from sktune.files import CELLS_FOLDER, COMPARISON_FILE, METRICS_FILE, write_whole
from sktune.tracking import names

Status = Literal["planned", "running", "finished", "failed"]

Curve = tuple[tuple[int, float], ...]
"""(step, validation metric) of each evaluation."""


@dataclass
class CellState:
    """One cell: what it is and what came out. Read from MLflow, it has neither a folder nor settings.

    folder: relative to the comparison's; `curves` lies there too: one JSON object a line, with step and metrics.
    settings: the flat recipe that the result belongs to.
    summary: final numbers, as in the cell's `summary.json`.
    started, ended: seconds since 1970.
    curve: filled in by `read_results`; the file does not keep it.
    """

    name: str
    label: str
    method: str
    grid: dict[str, Any]
    seed: int
    folder: str = ""
    curves: str = ""
    overrides: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    status: Status = "planned"
    error: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    curve: Curve = ()

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass
class ComparisonState:
    """The whole file.

    metric: validation chooses by it, and the report compares it.
    floor: scores of the best constant answer, by split; see `floor`.
    """

    name: str
    recipe: str
    overrides: list[str]
    task: str
    metric: str
    select: str
    floor: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    cells: list[CellState] = field(default_factory=list)
    version: int = 1

    def cell(self, name: str) -> CellState:
        """The cell of this name."""
        return next(cell for cell in self.cells if cell.name == name)

    def add(self, cells: list[Cell], launch: dict[str, Any]) -> list[CellState]:
        """Adds the cells that are not there yet, as planned.

        Args:
            cells: of this command.
            launch: what a result depends on besides the recipe: ranks (the global batch counts them) and device.

        Returns:
            Cells that had failed with other settings: they are planned anew, and what they left is worth nothing.

        Raises:
            UserError: where a cell is there with other settings, or other cells are that differ from the new ones in
                more than method, seed and the fields of a grid; all of them at once.
        """
        known = {cell.name: cell for cell in self.cells}
        problems: list[str] = []
        anew: list[CellState] = []
        settings_of = {cell.name: {**cell.settings(), **launch} for cell in cells}
        if cells:
            problems += self._unknown_keys(settings_of[cells[0].name], {key for cell in cells for key in cell.grid})
        for cell in cells:
            earlier = known.get(cell.name)
            if earlier is not None and earlier.status in ("running", "finished"):
                changed = _changes(earlier.settings, settings_of[cell.name])
                problems += [f"  {cell.name}: {'; '.join(changed)}"] if changed else []
        if problems:
            raise UserError(
                "output.dir: the comparison there was made with another recipe or launch:\n"
                + "\n".join(dict.fromkeys(problems))
                + "\n  change it back, or use another folder (--output)"
            )
        for cell in cells:
            settings = settings_of[cell.name]
            if cell.name not in known:
                folder = f"{CELLS_FOLDER}/{cell.name}"
                state = CellState(
                    name=cell.name,
                    label=cell.label,
                    method=cell.method,
                    grid=cell.grid,
                    seed=cell.seed,
                    folder=folder,
                    curves=f"{folder}/{METRICS_FILE}",
                    overrides=list(cell.overrides),
                    settings=settings,
                )
                self.cells.append(state)
            elif known[cell.name].settings != settings:
                earlier = known[cell.name]
                earlier.settings, earlier.overrides, earlier.status = settings, list(cell.overrides), "planned"
                anew.append(earlier)
        return anew

    def _unknown_keys(self, settings: dict[str, Any], varied: set[str]) -> list[str]:
        """Cells that have a result which cannot be put beside those of these settings."""
        problems = []
        for cell in self.cells:
            free = {"training.seed", *varied, *cell.grid}
            before, now = (
                {key: value for key, value in one.items() if key not in free and not key.startswith("method.")}
                for one in (cell.settings, settings)
            )
            if cell.status in ("running", "finished") and (changed := _changes(before, now)):
                problems.append(f"  {cell.name}: {'; '.join(changed)}")
        return problems

    def save(self, folder: Path) -> None:
        """Writes the file; a kill leaves the old one or the new one."""
        values = asdict(self)
        for cell in values["cells"]:
            del cell["curve"]
        write_whole(folder / COMPARISON_FILE, json.dumps(values, indent=1, ensure_ascii=False))

    def note(self, folder: Path, name: str, status: Status, **values: Any) -> None:
        """Sets a cell's status and other fields, and saves."""
        cell = self.cell(name)
        cell.status = status
        cell.started, cell.ended = (time.time(), None) if status == "running" else (cell.started, time.time())
        for key, value in {"error": None, **values}.items():
            setattr(cell, key, value)
        self.save(folder)


def load_state(folder: Path) -> ComparisonState:
    """The comparison in a folder.

    Raises:
        UserError: there is none, or the file is not one.
    """
    path = folder / COMPARISON_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cells = [CellState(**cell) for cell in values.pop("cells")]
        state = ComparisonState(**values, cells=cells)
        inside = [PurePosixPath(name).parts for cell in cells for name in (cell.folder, cell.curves)]
    except OSError as error:
        raise UserError(f"{path}: no comparison can be read there ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a comparison that sktune has written ({error})") from error
    if any(parts[:1] != (CELLS_FOLDER,) or len(parts) < 2 or ".." in parts for parts in inside):
        raise UserError(f"{path}: a cell's folder is not in {CELLS_FOLDER}/, so sktune has not written this file")
    return state


def read_results(folder: Path) -> ComparisonState:
    """The comparison in a folder with the curves of its cells, as far as they have got.

    Raises:
        UserError: there is none, or the file is not one.
    """
    state = load_state(folder)
    for cell in state.cells:
        cell.curve = read_curve(folder / cell.curves, state.metric)
    return state


def read_curve(path: Path, metric: str) -> Curve:
    """The validation metric over steps in a `metrics.jsonl`; empty where there is none yet."""
    if not path.exists():
        return ()
    found: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            entry = json.loads(line)
            value = float(entry["metrics"][names.of_split("validation", metric)])
        except (ValueError, KeyError, TypeError):  # another line, or half of one
            continue
        if math.isfinite(value):
            found[int(entry["step"])] = value
    return tuple(sorted(found.items()))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
