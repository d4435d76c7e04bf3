"""Metrics, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from sktune.tasks.metrics import class_metrics, entity_metrics, is_better, regression_metrics


def test_of_two_classes_the_last_is_the_positive_one() -> None:
    # 3 of 4 "no" and 1 of 2 "yes" are right: yes has precision 1/2 and recall 1/2, no 3/4 and 3/4.
    references = ["no", "no", "no", "no", "yes", "yes"]
    predictions = ["no", "no", "no", "yes", "yes", "no"]
    found = class_metrics(references, predictions, ("no", "yes"))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["positive_f1"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["matthews"] == pytest.approx(0.25)  # (3*1 - 1*1) / sqrt(2 * 2 * 4 * 4)
    assert class_metrics(references, predictions, ("yes", "no"))["positive_f1"] == pytest.approx(3 / 4)


def test_a_positive_class_that_is_never_answered_scores_nothing() -> None:
    assert class_metrics(["yes", "no"], ["no", "no"], ("no", "yes"))["positive_f1"] == 0.0


def test_entities_count_when_their_ends_and_types_are_right() -> None:
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predictions = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-LOC"]]
    overall, per_type = entity_metrics(references, predictions)
    assert overall["precision"] == pytest.approx(2 / 4)
    assert overall["recall"] == pytest.approx(2 / 3)
    assert overall["accuracy"] == pytest.approx(4 / 6)
    assert per_type["PER"]["f1"] == 0.0
    assert per_type["LOC"]["recall"] == 1.0


def test_correlations_of_a_constant_are_zero() -> None:
    found = regression_metrics([0.1, 0.2, 0.3], [0.1 + 0.2] * 3)
    assert found["pearson"] == found["spearman"] == 0.0
    assert found["mse"] == pytest.approx((0.04 + 0.01 + 0.0) / 3)


def test_lower_losses_and_higher_scores_are_better() -> None:
    assert is_better("f1", 0.5, 0.4)
    assert not is_better("mse", 0.5, 0.4)
    assert is_better("loss", 0.5, None)
