"""The numbers of a report: one entry a method, over its seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sktune.comparison.results import CellState, ComparisonState, Curve
from sktune.tasks.metrics import SMALLER_IS_BETTER, is_better
from sktune.tracking import names

TARGET_SHARE = 0.95
"""Of the best method's validation score: the target whose steps are counted."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of a single one."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Entry:
    """One line of the report.

    score: of the report's split; validation: at each run's best step.
    scores: every metric of the split, for the files.
    steps_to_target: mean over the seeds, None unless all of them reached it; `reached` counts those that did.
    tokens_per_second: real tokens, all ranks together. peak_bytes: the highest of any rank and seed.
    seconds: wall time of a run from its start to its summary, loading and evaluation included.
    curve: step -> validation metric over the seeds that were evaluated there.
    planned, finished: cells of this method at this grid point.
    """

    label: str
    method: str
    grid: dict[str, Any]
    planned: int
    finished: int
    score: Spread | None
    validation: Spread | None
    scores: dict[str, Spread]
    trainable_parameters: int | None
    steps_to_target: float | None
    reached: int
    tokens_per_second: Spread | None
    peak_bytes: float | None
    adapter_bytes: float | None
    seconds: Spread | None
    curve: dict[int, Spread]


@dataclass(frozen=True)
class Report:
    """Entries, best first, and what they are compared with.

    split: `test`, or `validation` where no run has a test score.
    target: of `metric` on validation; None without validation.
    floor: the constant answer's score on `split`, called `floor_name`.
    steps_by_cell: cell -> step at which it reached the target, None where it did not.
    """

    name: str
    task: str
    metric: str
    split: str
    select: str
    entries: tuple[Entry, ...]
    target: float | None
    floor: float | None
    floor_name: str
    failed: dict[str, str]
    unfinished: tuple[str, ...]
    steps_by_cell: dict[str, int | None] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program."""
        return asdict(self)


def build_report(results: ComparisonState) -> Report:
    """The report of whatever has finished.

    With `select: validation` a method is shown at the grid point with the best mean validation score over its
    seeds, among the points where most of them finished; otherwise at every point.
    """
    metric = results.metric
    groups = _groups(results.cells)
    if results.select == "validation":
        groups = {label: [_chosen(points, metric)] for label, points in groups.items()}
    shown = [cells for points in groups.values() for cells in points]
    split = "test" if any(names.of_split("test", metric) in cell.summary for cell in results.cells) else "validation"
    target = _target(shown, metric)
    entries = [_entry(cells, metric, split, target) for cells in shown]
    entries.sort(key=lambda entry: _rank(entry, metric))
    floor = (results.floor or {}).get(split, {}).get(metric)
    finished = [cell for cell in results.cells if cell.finished] if target is not None else []
    reached = {cell.name: first_step(cell.curve, target, metric) for cell in finished}
    return Report(
        name=results.name,
        task=results.task,
        metric=metric,
        split=split,
        select=results.select,
        entries=tuple(entries),
        target=target,
        floor=floor,
        floor_name=str((results.floor or {}).get("name", "")),
        failed={cell.name: cell.error or "" for cell in results.cells if cell.status == "failed"},
        unfinished=tuple(cell.name for cell in results.cells if cell.status in ("planned", "running")),
        steps_by_cell=reached,
        environment=dict(results.environment),
    )


def spread(values: Iterable[float]) -> Spread | None:
    """Of the finite values, None where there are none."""
    kept = [float(value) for value in values if math.isfinite(float(value))]
    if not kept:
        return None
    return Spread(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else None, len(kept))


def first_step(curve: Curve, target: float | None, metric: str) -> int | None:
    """First evaluation that is as good as the target."""
    if target is None:
        return None
    return next((step for step, value in curve if value == target or is_better(metric, value, target)), None)


def _groups(cells: Sequence[CellState]) -> dict[str, list[list[CellState]]]:
    """Label -> its grid points, each the cells of its seeds; in the order of the comparison."""
    groups: dict[str, dict[str, list[CellState]]] = {}
    for cell in cells:
        point = json.dumps(dict(cell.grid), sort_keys=True)
        groups.setdefault(cell.label, {}).setdefault(point, []).append(cell)
    return {label: list(points.values()) for label, points in groups.items()}


def _chosen(points: list[list[CellState]], metric: str) -> list[CellState]:
    most = max(sum(cell.finished for cell in cells) for cells in points)
    best, best_value = points[0], None
    for cells in points:
        value = _over_seeds(cells, names.of_split("validation", metric))
        if sum(cell.finished for cell in cells) < most:
            continue
        if best_value is None:
            best = cells
        if value is not None and is_better(metric, value.mean, best_value):
            best, best_value = cells, value.mean
    return best


def _over_seeds(cells: Sequence[CellState], key: str) -> Spread | None:
    return spread(cell.summary[key] for cell in cells if cell.finished and cell.summary.get(key) is not None)


def _target(shown: Sequence[Sequence[CellState]], metric: str) -> float | None:
    """TARGET_SHARE of the best mean validation score; for losses, as much above the lowest."""
    best = None
    for cells in shown:
        value = _over_seeds(cells, names.of_split("validation", metric))
        if value is not None and is_better(metric, value.mean, best):
            best = value.mean
    if best is None:
        return None
    slack = (1 - TARGET_SHARE) * abs(best)
    return best + slack if metric in SMALLER_IS_BETTER else best - slack


def _entry(cells: Sequence[CellState], metric: str, split: str, target: float | None) -> Entry:
    finished = [cell for cell in cells if cell.finished]
    steps = [first_step(cell.curve, target, metric) for cell in finished]
    reached = [step for step in steps if step is not None]
    prefix = names.of_split(split)
    keys = {key for cell in finished for key in cell.summary if key.startswith(prefix)}
    scores = {key.removeprefix(prefix): _over_seeds(cells, key) for key in sorted(keys)}
    return Entry(
        label=cells[0].label,
        method=cells[0].method,
        grid=dict(cells[0].grid),
        planned=len(cells),
        finished=len(finished),
        score=_over_seeds(cells, names.of_split(split, metric)),
        validation=_over_seeds(cells, names.of_split("validation", metric)),
        scores={name: value for name, value in scores.items() if value is not None},
        trainable_parameters=_whole(_highest(finished, names.TRAINABLE_PARAMETERS)),
        steps_to_target=statistics.fmean(reached) if reached and len(reached) == len(steps) else None,
        reached=len(reached),
        tokens_per_second=_over_seeds(cells, names.TOKENS_PER_SECOND),
        peak_bytes=_highest(finished, names.PEAK_BYTES),
        adapter_bytes=_highest(finished, names.ADAPTER_BYTES),
        seconds=_over_seeds(cells, names.WALL_SECONDS),
        curve=_mean_curve([cell.curve for cell in finished]),
    )


def _highest(cells: Sequence[CellState], key: str) -> float | None:
    return max((float(cell.summary[key]) for cell in cells if cell.summary.get(key) is not None), default=None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _mean_curve(curves: Sequence[Curve]) -> dict[int, Spread]:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    means: Mapping[int, Spread | None] = {step: spread(values) for step, values in sorted(by_step.items())}
    return {step: value for step, value in means.items() if value is not None}


def _rank(entry: Entry, metric: str) -> tuple[bool, float]:
    if entry.score is None:
        return True, 0.0
    return False, entry.score.mean if metric in SMALLER_IS_BETTER else -entry.score.mean
