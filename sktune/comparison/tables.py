"""A report as text: terminal table, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sktune.comparison.pictures import draw
from sktune.comparison.report import TARGET_SHARE, Entry, Report, Spread
from sktune.files import REPORT_CSV, REPORT_JSON, REPORT_MARKDOWN, write_whole
from sktune.tracking import names

_NONE = "-"


def columns(report: Report) -> list[str]:
    """Headings, of the table and of Markdown."""
    return [
        "method",
        *(["chosen" if report.select == "validation" else "settings"] if _has_grid(report) else []),
        f"{report.split} {report.metric}",
        *([f"validation {report.metric}"] if report.split == "test" else []),
        "seeds",
        "trainable",
        f"steps to {TARGET_SHARE:.0%}",
        "tokens/s",
        "seconds",
        "peak memory",
        "adapter",
    ]


def rows(report: Report) -> list[list[str]]:
    """One line an entry, and the constant answer last; without a grid no column of its values."""
    lines = [_row(entry, report) for entry in report.entries]
    if report.floor is not None:
        floor = [report.floor_name, *([_NONE] if _has_grid(report) else []), f"{report.floor:.4f}"]
        lines.append(floor + [_NONE] * (len(columns(report)) - len(floor)))
    return lines


def notes(report: Report) -> list[str]:
    """What the numbers mean, and what is missing from them."""
    lines = [
        f"mean ± standard deviation over seeds, on {report.split}; tokens/s counts real tokens of training steps, "
        "those of a template and its demonstrations too"
    ]
    if report.select == "validation" and _has_grid(report):
        lines.append(f"every method at its grid point with the best mean validation {report.metric}")
        if report.split == "validation":
            lines.append("there is no test split: what is reported chose the grid points too, and flatters them")
    if report.target is not None:
        share = f"{TARGET_SHARE:.0%} of the best method's validation {report.metric} is {report.target:.4f}"
        lines.append(f"{share}; steps are of the first evaluation that reaches it, mean over seeds")
    if report.environment.get("device") == "cpu":
        lines.append(
            "peak memory is the process's resident one: libraries and what earlier cells left in their caches included"
        )
    if report.environment:
        lines.append("environment: " + ", ".join(f"{key} {value}" for key, value in report.environment.items()))
    lines += [f"failed: {name}: {error}" for name, error in report.failed.items()]
    lines += [f"not finished: {', '.join(report.unfinished)}"] if report.unfinished else []
    return lines


def as_table(report: Report) -> Table:
    """For the terminal."""
    # As plain text: brackets in names and messages are no markup.
    title, caption = Text(f"{report.name}: {report.task}"), Text("\n".join(notes(report)))
    table = Table(title=title, caption=caption, caption_justify="left")
    for name in columns(report):
        table.add_column(name, justify="left" if name in ("method", "chosen", "settings") else "right", no_wrap=False)
    for line in rows(report):
        table.add_row(*map(Text, line))
    return table


def as_markdown(report: Report) -> str:
    """A GitHub table with its notes."""
    lines = [f"# {report.name}: {report.task}", "", _line(columns(report))]
    lines.append(_line(["---" if name in ("method", "chosen", "settings") else "---:" for name in columns(report)]))
    lines += [_line(line) for line in rows(report)]
    lines += ["", *(f"- {note}" for note in notes(report)), ""]
    return "\n".join(lines)


def as_csv(report: Report) -> str:
    """One line an entry with plain numbers, every metric of the split among them; empty where there is none."""
    lines = [_flat(entry, report.split) for entry in report.entries]
    if report.floor is not None:
        score = {names.of_split(report.split, report.metric): report.floor}
        lines.append({"label": report.floor_name, "method": "constant", **score})
    out = io.StringIO()
    fields = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(out, list(fields), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(entry: Entry, split: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "label": entry.label,
        "method": entry.method,
        **entry.grid,
        "seeds_finished": entry.finished,
        "seeds_planned": entry.planned,
    }
    best = {"validation_of_best_step": entry.validation}
    for name, value in ({names.of_split(split, name): value for name, value in entry.scores.items()} | best).items():
        line |= {name: value.mean if value else None, f"{name}_std": value.deviation if value else None}
    return line | {
        "trainable_parameters": entry.trainable_parameters,
        "steps_to_target": entry.steps_to_target,
        "seeds_that_reached_it": entry.reached,
        "real_tokens_per_second": entry.tokens_per_second.mean if entry.tokens_per_second else None,
        "seconds": entry.seconds.mean if entry.seconds else None,
        "peak_bytes": entry.peak_bytes,
        "adapter_bytes": entry.adapter_bytes,
    }


def as_json(report: Report) -> str:
    """Everything, curves too."""
    return json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """`report.md`, `report.csv`, `report.json` and the pictures; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(report, folder)
    markdown = as_markdown(report) + "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    files = []
    for name, text in ((REPORT_MARKDOWN, markdown), (REPORT_CSV, as_csv(report)), (REPORT_JSON, as_json(report))):
        write_whole(folder / name, text)
        files.append(folder / name)
    return files + pictures


def shown_grid(grid: Mapping[str, Any]) -> str:
    """`learning_rate 0.003, max_steps 20`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in grid.items()) or _NONE


def _has_grid(report: Report) -> bool:
    return any(entry.grid for entry in report.entries)


def _row(entry: Entry, report: Report) -> list[str]:
    seeds = str(entry.finished) if entry.finished == entry.planned else f"{entry.finished} of {entry.planned}"
    if entry.steps_to_target is not None:
        steps = f"{entry.steps_to_target:,.0f}"
    elif report.target is None or not entry.finished:
        steps = _NONE
    else:
        steps = f"{entry.reached} of {entry.finished} seeds" if entry.reached else "not reached"
    return [
        entry.label,
        *([shown_grid(entry.grid)] if _has_grid(report) else []),
        _shown(entry.score),
        *([_shown(entry.validation)] if report.split == "test" else []),
        seeds,
        _NONE if entry.trainable_parameters is None else f"{entry.trainable_parameters:,}",
        steps,
        _NONE if entry.tokens_per_second is None else f"{entry.tokens_per_second.mean:,.0f}",
        _NONE if entry.seconds is None else f"{entry.seconds.mean:,.0f}",
        _size(entry.peak_bytes),
        _size(entry.adapter_bytes),
    ]


def _shown(value: Spread | None) -> str:
    if value is None:
        return _NONE
    return f"{value.mean:.4f}" + ("" if value.deviation is None else f" ± {value.deviation:.4f}")


def _size(value: float | None) -> str:
    if value is None:
        return _NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}" if unit == "GB" else f"{value / size:,.1f} {unit}"
    return f"{value:.0f} B"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
