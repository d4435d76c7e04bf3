"""Batches: the same examples however they are divided, each exactly once, and padded as promised."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from sktune.data import Collator, GlobalBatches, Row, divide, evaluation_batches
from sktune.tasks import TASKS
from sktune.tasks.task import Task, build_task


def some_lengths(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [round(generator.triangular(1, 60, 15)) for _ in range(count)]


def padding_share(batches: list[list[int]], lengths: list[int]) -> float:
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("group_by_length", [True, False])
def test_an_epoch_holds_every_row_once(count: int, group_by_length: bool) -> None:
    batches = GlobalBatches(some_lengths(count), 8, seed=1, group_by_length=group_by_length)
    for number in range(3):
        epoch = batches.epoch(number)
        assert sorted(row for batch in epoch for row in batch) == list(range(count))
        assert len(epoch) == batches.steps_per_epoch
        assert all(len(batch) == 8 for batch in epoch[:-1])


def test_epochs_differ_and_repeat_themselves() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        return GlobalBatches(some_lengths(500), 8, seed, True).epoch(number)

    assert epoch(3, 2) == epoch(3, 2)
    different = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_grouping_by_length_saves_padding_without_an_order_by_length() -> None:
    lengths = some_lengths(3394)
    grouped = GlobalBatches(lengths, 32, 0, True).epoch(0)
    plain = GlobalBatches(lengths, 32, 0, False).epoch(0)
    assert padding_share(grouped, lengths) <= 0.10
    assert padding_share(plain, lengths) > 0.3
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in grouped]
    rises = sum(a < b for a, b in pairwise(means))
    assert 0.3 < rises / len(means) < 0.7


def test_the_short_batch_is_drawn_like_any_other() -> None:
    lengths = list(range(1, 101))
    batches = GlobalBatches(lengths, 9, 0, True)
    rest = [row for number in range(200) for row in batches.epoch(number)[-1]]
    assert 40 < sum(rest) / len(rest) < 59


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        GlobalBatches([], 8, 0, True)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        GlobalBatches([1], 0, 0, True)
    with pytest.raises(ValueError, match="5 rows do not fit into 1 ranks x 2 micro steps x 2 rows"):
        divide([0, 1, 2, 3, 4], 1, 0, 2, 2)
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        divide([0], 2, 2, 1, 1)
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        evaluation_batches([1], 2, 2, 2)


@pytest.mark.parametrize(
    ("world_size", "micro_steps", "micro_batch_size"),
    [(1, 1, 4), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 3, 4)],
)
def test_every_division_of_a_global_batch_has_the_same_examples(
    world_size: int, micro_steps: int, micro_batch_size: int
) -> None:
    for batch in GlobalBatches(some_lengths(11), 4, 5, True).epoch(0):
        shares = [divide(batch, world_size, rank, micro_steps, micro_batch_size) for rank in range(world_size)]
        chunks = [shares[rank][step] for step in range(micro_steps) for rank in range(world_size)]
        assert all(len(chunk) == micro_batch_size for chunk in chunks)
        in_order = [row for chunk in chunks for row in chunk]
        assert in_order[: len(batch)] == batch
        assert in_order[len(batch) :] == [None] * (len(in_order) - len(batch))


def test_evaluation_covers_every_row_once_for_any_world() -> None:
    for count in (0, 1, 2, 5, 16, 33):
        lengths = some_lengths(count, seed=count)
        for world_size in (1, 2, 3, 5):
            for batch_size in (1, 2, 7, 40):
                ranks = [evaluation_batches(lengths, batch_size, world_size, rank) for rank in range(world_size)]
                assert len({len(batches) for batches in ranks}) == 1
                assert all(len(batch) == batch_size for batches in ranks for batch in batches)
                rows = [row for batches in ranks for batch in batches for row in batch if row is not None]
                assert sorted(rows) == list(range(count))
                fillers = len(ranks[0]) * world_size * batch_size - count
                assert fillers < world_size * batch_size or count == 0
                if count:
                    assert lengths[ranks[0][0][0] or 0] == max(lengths)


def row(index: int, ids: list[int], labels: int | float | list[int], segments: list[int] | None = None) -> Row:
    return Row(index, ids, segments, labels, "")


def of(task: str) -> Task:
    return build_task(TASKS.read({"name": task}))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_labels_per_token(side: str) -> None:
    collate = Collator(9, "left" if side == "left" else "right", of("token_classification"))
    batch = collate([row(4, [1, 2, 3], [0, -100, 1]), None, row(7, [5], [2])])
    right = side == "right"
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 3], [5, 9, 9] if right else [9, 9, 5]]
    assert batch["attention_mask"].tolist() == [[1] * 3, [1] * 3, [1, 0, 0] if right else [0, 0, 1]]
    assert batch["labels"].tolist() == [
        [0, -100, 1],
        [-100] * 3,
        [2, -100, -100] if right else [-100, -100, 2],
    ]
    assert batch["valid"].tolist() == [True, False, True]
    assert batch["index"].tolist() == [4, -1, 7]
    assert "token_type_ids" not in batch
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "valid": torch.bool,
        "index": torch.int64,
    }


@pytest.mark.parametrize("task", ["sequence_classification", "pair_classification"])
def test_class_labels_and_segments(task: str) -> None:
    batch = Collator(0, "right", of(task))([None, row(0, [1, 2], 3, [0, 1]), row(1, [1], -100, [0])])
    assert batch["labels"].tolist() == [-100, 3, -100]
    assert batch["token_type_ids"].tolist() == [[0, 1], [0, 1], [0, 0]]
    assert batch["token_type_ids"].dtype == batch["labels"].dtype == torch.int64


def test_regression_labels_are_float32() -> None:
    batch = Collator(0, "right", of("regression"))([row(0, [1], 2.5), None])
    assert batch["labels"][0] == 2.5
    assert batch["labels"][1].isnan()  # a filler's does not count
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("task", ["token_classification", "causal_lm", "regression", "sequence_classification"])
@pytest.mark.parametrize("rows", [[], [None], [None, None]])
def test_a_batch_of_fillers_can_still_be_run(task: str, rows: list[Row | None]) -> None:
    batch = Collator(3, "left", of(task))(rows)
    size = max(1, len(rows))
    assert batch["input_ids"].tolist() == [[3]] * size
    assert batch["attention_mask"].tolist() == [[1]] * size
    assert batch["valid"].tolist() == [False] * size
    assert batch["index"].tolist() == [-1] * size
    labels = batch["labels"].flatten()
    assert len(labels) == size
    assert bool((labels.isnan() if task == "regression" else labels == -100).all())
    assert batch["labels"].ndim == (2 if task in ("token_classification", "causal_lm") else 1)
