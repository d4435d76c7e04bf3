"""A model in float16 whose gradients are too small for it says so, once; others say nothing."""

from __future__ import annotations

import logging

import pytest
from training_fixtures import TASKS, Sections, Workshop

HALF: Sections = {"model": {"dtype": "float16"}}


@pytest.mark.parametrize("changes", [{}, {"training": {"gradient_checkpointing": True}}], ids=["plain", "recomputed"])
def test_small_gradients_in_float16_are_said(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, changes: Sections
) -> None:
    # The head starts at weights of zero, and at this rate stays there: hardly any gradient reaches the blocks.
    still: Sections = {"training": {"head_learning_rate": 1e-6}}
    with caplog.at_level(logging.WARNING):
        workshop.train("half", TASKS["sequence"], HALF, still, changes)
    said = [record.getMessage() for record in caplog.records if "float16: " in record.getMessage()]
    assert len(said) == 1
    assert "use model.dtype bfloat16 or float32" in said[0]


def test_gradients_that_float16_holds_are_not_said(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        workshop.train("words", TASKS["words"], HALF)
        workshop.train("single", TASKS["sequence"], {"training": {"head_learning_rate": 1e-6}})
    assert "float16" not in caplog.text
