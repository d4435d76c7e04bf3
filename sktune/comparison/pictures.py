"""Pictures of a report, as PNG files. Drawn without pyplot: no display, no global state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sktune.comparison.report import Entry, Report, Spread
from sktune.errors import named_line
from sktune.tracking.names import shorten

logger = logging.getLogger(__name__)

_MARKERS = "osD^vPX*<>hp"

MAX_NAMED = 25
"""So many lines and points are named: the first, which of a report are the best; more names cover each other."""
MAX_NAME = 60
"""Characters of a name that are drawn."""


class Curve(NamedTuple):
    """One line of a picture: what was measured at which step, and matplotlib's words for how it looks."""

    label: str
    points: Mapping[int, Spread]
    style: Mapping[str, Any]


def draw(report: Report, folder: Path) -> list[Path]:
    """Metric over steps, score against parameters, throughput against memory; only those with something to show."""
    kinds: tuple[tuple[str, Callable[[Report, Any], bool]], ...] = (
        ("metric_over_steps.png", _metric_over_steps),
        ("score_against_parameters.png", _score_against_parameters),
        ("throughput_against_memory.png", _throughput_against_memory),
    )
    drawn = []
    for name, picture in kinds:
        figure, axes = blank_picture()
        try:
            if picture(report, axes):
                figure.savefig(folder / name, dpi=120, format="png")
                drawn.append(folder / name)
        except Exception as error:  # whatever a drawing library comes up with: the report has its tables all the same
            logger.warning("%s was not drawn (%s)", folder / name, named_line(error))
    return drawn


def blank_picture() -> tuple[Figure, Any]:
    """A figure that `savefig` writes, and its axes."""
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def line_colour(place: int) -> Any:
    """Colour of the line at this place of the legend; they repeat after twenty."""
    return colormaps["tab20"](place % 20 / 20)


def draw_curves(axes: Any, curves: Sequence[Curve], metric: str, target: float | None) -> None:
    """Means over steps with bands of one standard deviation; the target as a dashed line."""
    for number, (label, points, style) in enumerate(curves):
        steps, means = list(points), [point.mean for point in points.values()]
        widths = [point.deviation or 0.0 for point in points.values()]
        axes.plot(steps, means, label=shorten(label, MAX_NAME) if number < MAX_NAMED else None, **style)
        low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)
    if target is not None:
        axes.axhline(target, color="grey", linestyle="--", linewidth=1, label="95% of the best")
    if metric == "perplexity":  # of loss the exponential: what is near the best would lie on one line
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"validation {metric}")
    axes.set_title("mean over seeds, band: one standard deviation")
    if curves:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title=_unnamed(len(curves)))
        for text in legend.get_texts():
            text.set_parse_math(False)


def _style(report: Report, entry: Entry) -> dict[str, Any]:
    """The same colour and marker in every picture."""
    order = sorted(range(len(report.entries)), key=lambda i: (report.entries[i].label, i))
    place = order.index(report.entries.index(entry))
    return {"color": line_colour(place), "marker": _MARKERS[place % len(_MARKERS)]}


def _name(report: Report, entry: Entry) -> str:
    if report.select == "validation" or not entry.grid:
        return entry.label
    return f"{entry.label} ({', '.join(str(value) for value in entry.grid.values())})"


def _metric_over_steps(report: Report, axes: Any) -> bool:
    curves = [
        Curve(_name(report, entry), entry.curve, {"markersize": 4, **_style(report, entry)})
        for entry in report.entries
        if entry.curve
    ]
    draw_curves(axes, curves, report.metric, report.target)
    return bool(curves)


def _score_against_parameters(report: Report, axes: Any) -> bool:
    shown = [(e, e.trainable_parameters, e.score) for e in report.entries if e.trainable_parameters and e.score]
    for number, (entry, parameters, score) in enumerate(shown):
        axes.errorbar(parameters, score.mean, yerr=score.deviation, capsize=3, **_style(report, entry))
        if number < MAX_NAMED:
            _write(axes, _name(report, entry), parameters, score.mean)
    if report.floor is not None:
        axes.axhline(report.floor, color="grey", linestyle=":", linewidth=1)
        name = shorten(report.floor_name, MAX_NAME)
        place, units = (0.01, report.floor), ("axes fraction", "data")
        axes.annotate(name, place, xycoords=units, fontsize=8, parse_math=False)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(f"{report.split} {report.metric}")
    return bool(shown)


def _throughput_against_memory(report: Report, axes: Any) -> bool:
    shown = [(e, e.peak_bytes, e.tokens_per_second) for e in report.entries if e.peak_bytes and e.tokens_per_second]
    for number, (entry, peak, speed) in enumerate(shown):
        axes.errorbar(peak / 1e6, speed.mean, yerr=speed.deviation, capsize=3, **_style(report, entry))
        if number < MAX_NAMED:
            _write(axes, _name(report, entry), peak / 1e6, speed.mean)
    axes.margins(x=0.15)
    axes.set_xlabel("peak memory of a rank (MB)")
    axes.set_ylabel("real tokens per second")
    return bool(shown)


def _write(axes: Any, text: str, x: float, y: float) -> None:
    name = shorten(text, MAX_NAME)
    axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, parse_math=False)


def _unnamed(count: int) -> str | None:
    return f"the first {MAX_NAMED} of {count}" if count > MAX_NAMED else None
