"""Figures of a finished evaluation, as PNG files; no figure is registered with pyplot, and no display is needed.

Their size is bounded whatever the number of labels, and names are drawn as they are: `$` opens no formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sktune.tracking.names import shorten

MAX_LABELS_WITH_COUNTS = 25
"""Above this many labels the counts inside the cells cannot be read any more."""
MAX_LABELS = 40
"""Above this many labels a confusion matrix shows those that are confused most, F1 by type the most frequent ones."""
OTHER = "(other)"
MAX_NAME = 40
"""Characters of a name that are drawn."""


def confusion_matrix_figure(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str], path: Path
) -> Path:
    """Counts of reference (rows) against prediction (columns), coloured by the share of their row.

    References outside the label set, and above 40 labels those that are confused least, are counted as `(other)`.

    Args:
        references: true labels, one per example or word.
        predictions: predicted labels, same length.
        labels: the label set, in the order of rows and columns.
        path: PNG file to write; its folder is created.

    Returns:
        `path`.

    Raises:
        ValueError: the lengths differ.
    """
    if len(references) != len(predictions):
        raise ValueError(f"confusion matrix: {len(references)} references, {len(predictions)} predictions.")
    chosen = _most_confused(references, predictions, labels)
    rows, columns, counts = _counts(references, predictions, chosen)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _new_figure(3.5 + 0.38 * len(columns), 2.5 + 0.38 * len(rows))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(chosen) <= MAX_LABELS_WITH_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes).set_label("share of the reference label")
    _name_ticks(axes, "x", [_drawn(name) for name in columns])
    _name_ticks(axes, "y", [_drawn(name) for name in rows])
    axes.set(xlabel="prediction", ylabel="reference")
    if len(chosen) < len(labels):
        axes.set_title(f"the {len(chosen)} of {len(labels)} labels that are confused most")
    return _save(figure, path)


def per_type_f1_figure(report: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """F1 of each entity type or class as bars, the averages left out; above 40 types, of the most frequent ones.

    Args:
        report: per type `f1-score` (or `f1`) and, where known, `support`: the dictionary form of
            seqeval's and scikit-learn's classification reports.
        path: PNG file to write; its folder is created.

    Returns:
        `path`.

    Raises:
        ValueError: the report holds no type.
    """
    types = {
        name: values for name, values in report.items() if isinstance(values, Mapping) and not name.endswith(" avg")
    }
    if not types:
        raise ValueError("per-type F1: the report holds no entity type or class.")
    frequent = set(sorted(types, key=lambda name: -types[name].get("support", 0))[:MAX_LABELS])
    shown = {name: values for name, values in types.items() if name in frequent}
    scores = [float(values.get("f1-score", values.get("f1"))) for values in shown.values()]
    captions = [
        f"{_drawn(name)} ({values['support']:g})" if "support" in values else _drawn(name)
        for name, values in shown.items()
    ]
    figure, axes = _new_figure(max(4.0, 1.5 + 0.45 * len(shown)), 4.0)
    bars = axes.bar(range(len(shown)), scores, color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    _name_ticks(axes, "x", captions)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("F1")
    of_all = f", the {len(shown)} most frequent of {len(types)}" if len(shown) < len(types) else ""
    axes.set_title(f"F1 by type (number of references){of_all}")
    return _save(figure, path)


def _most_confused(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The labels that take part in most mistakes, then in most examples; in the order of the label set."""
    if len(labels) <= MAX_LABELS:
        return list(labels)
    weight = dict.fromkeys(labels, 0)
    wrong = len(references) + 1  # a mistake outweighs any number of right answers
    for pair in zip(references, predictions, strict=True):
        for name in pair:
            if name in weight:
                weight[name] += wrong if pair[0] != pair[1] else 1
    kept = set(sorted(labels, key=lambda name: -weight[name])[:MAX_LABELS])
    return [name for name in labels if name in kept]


def _counts(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], list[str], np.ndarray]:
    """(names of rows, names of columns, counts); `(other)` comes last, where there is something in it."""
    place = {name: number for number, name in enumerate(labels)}
    last = len(labels)
    counts = np.zeros((last + 1, last + 1), dtype=np.int64)
    for reference, prediction in zip(references, predictions, strict=True):
        counts[place.get(reference, last), place.get(prediction, last)] += 1
    rows, columns = [*labels, OTHER], [*labels, OTHER]
    if not counts[last].any():
        rows, counts = rows[:-1], counts[:-1]
    if not counts[:, last].any():
        columns, counts = columns[:-1], counts[:, :-1]
    return rows, columns, counts


def _drawn(name: str) -> str:
    """A name in one short line."""
    return shorten(" ".join(name.split()), MAX_NAME)


def _name_ticks(axes: Any, which: str, names: Sequence[str]) -> None:
    if which == "x":
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_yticks(range(len(names)), names)
    for text in axes.get_xticklabels() if which == "x" else axes.get_yticklabels():
        text.set_parse_math(False)


def _new_figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    return path
