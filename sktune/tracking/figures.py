"""Figures of a finished evaluation, as PNG files; no figure is registered with pyplot, and no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

# Above this many labels the counts inside the cells cannot be read any more.
MAX_LABELS_WITH_COUNTS = 25


def confusion_matrix_figure(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str], path: Path
) -> Path:
    """Counts of reference (rows) against prediction (columns), coloured by the share of their row.

    Args:
        references: true labels, one per example or word.
        predictions: predicted labels, same length.
        labels: the label set, in the order of rows and columns.
        path: PNG file to write; its folder is created.

    Returns:
        `path`.

    Raises:
        ValueError: the lengths differ, or no reference is among the labels.
    """
    if len(references) != len(predictions):
        raise ValueError(f"confusion matrix: {len(references)} references, {len(predictions)} predictions.")
    counts = confusion_matrix(references, predictions, labels=list(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.45 * len(labels)
    figure, axes = _new_figure(side + 1.0, side)
    display = ConfusionMatrixDisplay(shares, display_labels=labels).plot(
        ax=axes, cmap="Blues", im_kw={"vmin": 0, "vmax": 1}, include_values=len(labels) <= MAX_LABELS_WITH_COUNTS
    )
    if display.text_ is not None:
        for text, count in zip(display.text_.flat, counts.flat, strict=True):
            text.set(text=str(count) if count else "", fontsize=8)
    display.im_.colorbar.set_label("share of the reference label")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="prediction", ylabel="reference")
    return _save(figure, path)


def per_type_f1_figure(report: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """F1 of each entity type or class as bars, the averages left out.

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
    scores = [float(values.get("f1-score", values.get("f1"))) for values in types.values()]
    captions = [f"{name} ({values['support']:g})" if "support" in values else name for name, values in types.items()]
    figure, axes = _new_figure(max(4.0, 1.5 + 0.6 * len(types)), 4.0)
    bars = axes.bar(range(len(types)), scores, color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(types)), captions, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("F1")
    axes.set_title("F1 by type (number of references)")
    return _save(figure, path)


def _new_figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    return path
