"""What a constant answer scores: the floor under every method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sktune.data import Example, RawSplits
from sktune.tasks.config import TaskConfig
from sktune.tasks.metrics import class_metrics, entity_metrics, regression_metrics


def constant_answer(raw: RawSplits, task: TaskConfig) -> dict[str, Any] | None:
    """Scores of the training split's most frequent label, of no entity at all, or of its mean.

    Returns:
        {"name": what is answered, "validation": {metric: value}, "test": {...}}, splits that are absent left out;
        None for free text, where no answer is more frequent than others.
    """
    splits = {name: rows for name, rows in (("validation", raw.validation), ("test", raw.test)) if rows}
    if task.name == "token_classification":
        return {"name": "all O"} | {name: _without_entities(rows) for name, rows in splits.items()}
    if task.name == "regression":
        train = _numbers(raw.train)
        mean = sum(train) / len(train)
        return {"name": f"mean ({mean:.3g})"} | {
            name: regression_metrics(_numbers(rows), [mean] * len(rows)) for name, rows in splits.items()
        }
    if raw.labels is None:
        return None
    majority, _ = Counter(str(row.reference) for row in raw.train).most_common(1)[0]
    return {"name": f"majority class ({majority})"} | {
        name: class_metrics([str(row.reference) for row in rows], [majority] * len(rows), raw.labels[-1])
        for name, rows in splits.items()
    }


def _numbers(rows: Sequence[Example]) -> list[float]:
    return [float(row.reference) for row in rows]  # type: ignore[arg-type]


def _without_entities(rows: Sequence[Example]) -> dict[str, float]:
    references = [[str(tag) for tag in row.reference] for row in rows]  # type: ignore[union-attr]
    return entity_metrics(references, [["O"] * len(tags) for tags in references])[0]
