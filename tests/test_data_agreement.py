"""Splits that do not agree with each other: refused where no score could mean anything, said where it may be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import Workshop

from sktune.cli import main
from sktune.data import RawSplits, load_for_evaluation, load_splits
from sktune.errors import UserError
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig
from sktune.tasks.multi_label.config import MultiLabelConfig
from sktune.tasks.regression.config import RegressionConfig
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

CLASSES, SEVERAL = SequenceClassificationConfig(), MultiLabelConfig()


def write(folder: Path, name: str, *labels: Any, text: str = "text") -> None:
    rows = [{"text": f"{text} {i} of {name}", "label": label} for i, label in enumerate(labels)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, task: TaskConfig = CLASSES, **fields: Any) -> RawSplits:
    return load_splits(DataSection(path=str(folder), **{"validation": None, **fields}), build_task(task))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("task", "train", "other"),
    [
        (CLASSES, ["pos", "neg"], [1, 0]),
        (CLASSES, ["pos", "neg"], ["Pos", "Neg"]),
        (SEVERAL, [["pos"], ["neg"]], [["1", "0"], []]),
    ],
)
def test_a_split_without_any_known_label_is_refused(
    tmp_path: Path, task: TaskConfig, train: list[Any], other: list[Any], split: str
) -> None:
    write(tmp_path, "train", *train)
    write(tmp_path, "other", *other)
    names = r"There: .*(1|Pos).*; in training: neg, pos"
    with pytest.raises(UserError, match=rf"data\.{split}: no label of .*other\.jsonl is one of training's\. {names}"):
        load(tmp_path, task, **{split: "other"})
    with pytest.raises(UserError, match=names):
        load_for_evaluation(DataSection(path=str(tmp_path), test="other"), build_task(task), "test", ("neg", "pos"))


def test_tags_other_than_o_have_to_be_known(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Anna B-PER\nsleeps O\n")
    (tmp_path / "other.conll").write_text("Anna B-person\nsleeps O\n")
    (tmp_path / "quiet.conll").write_text("nobody O\n")
    ner = TokenClassificationConfig()
    with pytest.raises(UserError, match=r"no tag of .* There: B-person; in training: B-PER, I-PER"):
        load(tmp_path, ner, train="train.conll", test="other.conll")
    assert load(tmp_path, ner, train="train.conll", test="quiet.conll").test


def test_one_known_label_is_enough_and_the_others_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "train", "pos", "neg")
    write(tmp_path, "test", "pos", *(f"new{i:02d}" for i in range(30)))
    (line,) = [line for line in load(tmp_path, test="test").report if "always counted as wrong" in line]
    assert line.endswith("new19 (1) and 10 more")


def test_numbers_that_are_all_on_another_scale_are_said(tmp_path: Path) -> None:
    write(tmp_path, "train", 1, 5)
    write(tmp_path, "test", 40, 90)
    write(tmp_path, "validation", 4, 90)
    report = load(tmp_path, RegressionConfig(), validation="validation", test="test").report
    assert [line for line in report if "outside" in line] == [
        "test: every number (40 to 90) lies outside training's (1 to 5); are they on one scale?"
    ]


def test_examples_of_training_in_a_split_that_is_scored_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(6)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "test.jsonl").write_text("".join(lines[3:]))
    (tmp_path / "validation.jsonl").write_text("".join(lines[4:]))
    report = load(tmp_path, test="test", validation="validation").report
    assert [line for line in report if "stand in training" in line] == [
        "test: 1 of 3 examples stand in training too, so its scores flatter"
    ]
    cut = load(tmp_path, test="test", max_train_samples=3).report
    assert not [line for line in cut if "stand in training" in line]


def test_pairs_and_sentences_are_compared_whole(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Anna B-PER\n\nsleeps O\n")
    (tmp_path / "test.conll").write_text("Anna B-PER\nsleeps O\n\nsleeps O\n")
    report = load(tmp_path, TokenClassificationConfig(), train="train.conll", test="test.conll").report
    assert "test: 1 of 2 examples stand in training too, so its scores flatter" in report


def test_one_text_with_two_labels_is_counted(tmp_path: Path) -> None:
    rows = [("x", "a"), ("same", "a"), ("same", "b"), ("same", "b"), ("twice", "b"), ("twice", "b")]
    text = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    (tmp_path / "train.jsonl").write_text(text)
    assert [line for line in load(tmp_path).report if "different labels" in line] == [
        "train: 1 inputs have different labels in different rows, the first of them in row 1"
    ]


def test_other_data_are_scored_without_the_training_file(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": "train.jsonl", "validation": None, "test": None}
    method = {"method": {"name": "head_only", "text": ..., "rank": ...}, "task": {"name": "sequence_classification"}}
    workshop.train("run", method, {"data": data, "training": {"max_steps": 1, "eval_steps": ..., "warmup_steps": 0}})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, "new", "people", "places", "other")
    changes = [f"data.path={elsewhere}", "data.test=new.jsonl"]
    assert main(["evaluate", str(workshop.output("run")), *changes]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)
    write(elsewhere, "new", "x", "y")
    assert main(["evaluate", str(workshop.output("run")), *changes]) == 2
    assert "There: x, y; in training: people, places" in capsys.readouterr().err
