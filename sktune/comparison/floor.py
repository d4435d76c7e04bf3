"""What a constant answer scores: the floor under every method."""

from __future__ import annotations

from typing import Any

from sktune.data import RawSplits
from sktune.tasks.task import Task


def constant_answer(raw: RawSplits, task: Task) -> dict[str, Any] | None:
    """Scores of the best answer that does not look at the input, as the training split has it.

    Returns:
        {"name": what is answered, "validation": {metric: value}, "test": {...}}, splits that are absent left out;
        None where a task has no such answer.
    """
    constant = task.constant(raw.train, raw.labels)
    if constant is None:
        return None
    name, score = constant
    splits = {"validation": raw.validation, "test": raw.test}
    return {"name": name} | {split: score(examples) for split, examples in splits.items() if examples}
