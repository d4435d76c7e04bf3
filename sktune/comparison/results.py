"""What a report is made of, wherever it was read: from a comparison's folder or from MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sktune.comparison.state import load_state
from sktune.tracking import names

Curve = tuple[tuple[int, float], ...]
"""(step, validation metric) of each evaluation."""


@dataclass(frozen=True)
class CellResult:
    """One cell: what it was and what came out."""

    name: str
    label: str
    method: str
    grid: Mapping[str, Any]
    seed: int
    status: str
    error: str | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    curve: Curve = ()

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class Results:
    """A comparison, as far as it has got.

    floor: scores of a constant answer by split and its `name`, or None.
    """

    name: str
    task: str
    metric: str
    select: str
    cells: tuple[CellResult, ...]
    floor: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)


def read_results(folder: Path) -> Results:
    """The results in a comparison's folder.

    Raises:
        UserError: there is no comparison in it.
    """
    state = load_state(folder)
    cells = tuple(
        CellResult(
            name=cell.name,
            label=cell.label,
            method=cell.method,
            grid=cell.grid,
            seed=cell.seed,
            status=cell.status,
            error=cell.error,
            summary=cell.summary,
            curve=read_curve(folder / cell.curves, state.metric),
        )
        for cell in state.cells
    )
    return Results(state.name, state.task, state.metric, state.select, cells, state.floor, state.environment)


def read_curve(path: Path, metric: str) -> Curve:
    """The validation metric over steps in a `metrics.jsonl`; empty where there is none yet."""
    if not path.exists():
        return ()
    found: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            value = float(entry["metrics"][names.of_split("validation", metric)])
        except (ValueError, KeyError, TypeError):  # another line, or half of one
            continue
        if math.isfinite(value):
            found[int(entry["step"])] = value
    return tuple(sorted(found.items()))
