"""Scores of a whole split, computed once from all ranks' predictions, never as a mean of batch means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# scikit-learn, seqeval and SciPy take a second to import: where a split is scored, not where a plan or a start waits.

SMALLER_IS_BETTER = frozenset({"loss", "perplexity", "mse"})


def entity_metrics(
    references: Sequence[list[str]], predictions: Sequence[list[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Entity-level scores as the CoNLL-2003 evaluation counts: an entity is right when span and type both are.

    Args:
        references: gold IOB2 tags of each sentence.
        predictions: predicted tags of the same lengths.

    Returns:
        (f1, precision, recall of all entities together, accuracy of single tags), and per type the same three
        with its support.
    """
    from seqeval.metrics import accuracy_score, classification_report

    report = classification_report(list(references), list(predictions), output_dict=True, zero_division=0)
    micro = report["micro avg"]
    overall = {
        "f1": float(micro["f1-score"]),
        "precision": float(micro["precision"]),
        "recall": float(micro["recall"]),
        "accuracy": float(accuracy_score(list(references), list(predictions))),
    }
    per_type = {
        name: {
            "f1": float(scores["f1-score"]),
            "precision": float(scores["precision"]),
            "recall": float(scores["recall"]),
            "support": int(scores["support"]),
        }
        for name, scores in report.items()
        if not name.endswith(" avg")
    }
    return overall, per_type


def tag_metrics(
    references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str | None]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of tags that stand for themselves, such as parts of speech, over all words.

    Args:
        references: tags of each sentence.
        predictions: predicted tags of the same lengths; None, of a word that was not read, is wrong.

    Returns:
        (accuracy, macro_f1: the mean over the tags of the references), and for each of these f1, precision, recall and
        support.
    """
    from sklearn.metrics import precision_recall_fscore_support

    truth = [tag for tags in references for tag in tags]
    found = ["" if tag is None else tag for tags in predictions for tag in tags]
    labels = sorted(set(truth))
    each = precision_recall_fscore_support(truth, found, labels=labels, average=None, zero_division=0)
    per_tag = {
        label: {
            **{name: float(each[part][i]) for name, part in (("f1", 2), ("precision", 0), ("recall", 1))},
            "support": int(each[3][i]),
        }
        for i, label in enumerate(labels)
    }
    right = sum(one == other for one, other in zip(truth, found, strict=True))
    return {"accuracy": right / max(len(truth), 1), "macro_f1": float(np.mean(each[2]))}, per_tag


def class_metrics(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro F1, Matthews correlation, and where there are two labels F1 of the last one (GLUE's F1);
    their names are those of `class_metric_names`.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    metrics = {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
    }
    if len(labels) == 2:
        positive = f1_score(references, predictions, labels=[labels[-1]], average="macro", zero_division=0)
        metrics["positive_f1"] = float(positive)
    return metrics | {"matthews": float(matthews_corrcoef(references, predictions))}


def regression_metrics(references: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson and Spearman correlation (0 where a constant leaves them undefined) and mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    x, y = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
    defined = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0  # the deviation of equal numbers may round above 0
    return {
        "pearson": float(pearsonr(x, y).statistic) if defined else 0.0,
        "spearman": float(spearmanr(x, y).statistic) if defined else 0.0,
        "mse": float(((x - y) ** 2).mean()),
    }


def perplexity(loss: float) -> float:
    """E to the mean negative log-likelihood of a target token; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def is_better(metric: str, new: float, best: float | None, threshold: float = 0.0) -> bool:
    """Whether `new` improves on `best` by more than `threshold`; NaN never does."""
    if math.isnan(new):
        return False
    if best is None:
        return True
    return (best - new if metric in SMALLER_IS_BETTER else new - best) > threshold
