"""Examples of the test split, read here and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from sktune.answering import answers_of
from sktune.data import Example
from sktune.errors import UserError
from sktune.export.trained import Trained
from sktune.writing import prompt_of, write


class Plain(Protocol):
    """What reads a folder without sktune's model."""

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Right-padded rows [B, L] -> logits."""
        ...


def examples_to_replay(trained: Trained, count: int) -> Sequence[Example]:
    """The first examples of the test split.

    Raises:
        UserError: where the recipe names none.
    """
    assert trained.setup.raw is not None
    if trained.setup.raw.test is None:
        raise UserError("--check: the recipe names no test split; set data.test=..., or leave --check out")
    return trained.setup.raw.test[:count]


def replay_logits(trained: Trained, plain: Plain, count: int, columns: Any = slice(None)) -> dict[str, Any]:
    """Logits of test examples here and there, rows padded on the right; `columns`: those that are compared."""
    setup, examples = trained.setup, examples_to_replay(trained, count)
    rows = list(setup.encode(examples, "test", scoring=True).rows)
    setup.collator.padding_side = "right"
    worst, same, total = 0.0, 0, 0
    for start in range(0, len(rows), 8):
        batch = setup.collator(rows[start : start + 8])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            here = setup.model(ids, mask).logits
        there = plain.logits(ids, mask)
        real = mask.bool() if here.ndim == 3 else torch.ones(len(here), dtype=torch.bool)
        ours, theirs = here.float()[real][..., columns], there[real].view(here[real].shape)[..., columns]
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
        if ours.ndim > 1:
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            total += len(ours)
    found: dict[str, Any] = {"examples": len(examples), "what": "logits", "largest_difference": worst}
    return found | ({"same_answers": same / total} if total else {})


@torch.no_grad()
def shown_here(trained: Trained, example: Example) -> dict[str, Any]:
    """What the task shows of an example, as `sktune predict` does."""
    setup, task = trained.setup, trained.setup.task
    rows = list(setup.encode([example], "test", scoring=True).rows)
    if task.config.new_tokens:
        (row,) = rows
        return {"generated": write(setup, [prompt_of(row)])[0]}
    return task.shown(example, rows, answers_of(setup, rows), setup.labels)


def replay_answers(
    examples: Sequence[Example], here: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Answers here and there: probabilities and numbers by their difference, all else by whether it is the same.

    Answers without a number differ by the part of them that is not the same.
    """
    pairs = [(_numbers(one), _numbers(other)) for one, other in zip(here, there, strict=True)]
    largest = max([1.0, *(abs(value) for ours, _ in pairs for value in ours)])
    same = [_words(one) == _words(other) for one, other in zip(here, there, strict=True)]
    worst = max((abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)), default=None)
    share = sum(same) / len(same)
    return {
        "examples": len(examples),
        "what": "answers",
        "largest_difference": 1 - share if worst is None else worst / largest,
        "same_answers": share,
    }


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _words(value: Any) -> Any:
    """All of it that is no number."""
    if isinstance(value, Mapping):
        return {key: _words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_words(item) for item in value]
    return None if isinstance(value, int | float) else value
