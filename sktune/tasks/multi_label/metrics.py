"""Scores of sets of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support


def label_metrics(
    references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of a whole split.

    Args:
        references: the labels of each text; those outside the label set count as a mistake of the text's exact match
            and as not found in micro F1.
        predictions: likewise, of the label set.
        labels: the label set.

    Returns:
        (micro_f1 of all decisions, macro_f1: the mean over the label set, exact_match: the share of texts whose labels
        are all right), and for each label f1, precision, recall and support.
    """
    unseen = sorted({label for of_text in references for label in of_text} - set(labels))
    place = {label: i for i, label in enumerate([*labels, *unseen])}
    truth, found = (_indicators(texts, place) for texts in (references, predictions))
    known = list(range(len(labels)))
    each = precision_recall_fscore_support(truth, found, labels=known, average=None, zero_division=0)
    overall = {
        "micro_f1": float(f1_score(truth, found, average="micro", zero_division=0)),
        "macro_f1": float(np.mean(each[2])),
        "exact_match": float(accuracy_score(truth, found)),
    }
    per_label = {
        label: {
            "f1": float(each[2][i]),
            "precision": float(each[0][i]),
            "recall": float(each[1][i]),
            "support": int(each[3][i]),
        }
        for i, label in enumerate(labels)
    }
    return overall, per_label


def _indicators(texts: Sequence[Sequence[str]], place: dict[str, int]) -> np.ndarray:
    matrix = np.zeros((len(texts), len(place)), dtype=int)
    for row, labels in enumerate(texts):
        matrix[row, [place[label] for label in labels]] = 1
    return matrix
