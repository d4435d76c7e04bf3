"""`sktune evaluate --data`: a trained adapter on data it was not trained with, which alone have to be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import TASKS, Workshop

from sktune.cli import main

Capture = pytest.CaptureFixture[str]


def trained(workshop: Workshop, task: str) -> Path:
    workshop.train("run", TASKS[task])
    return workshop.output("run")


def test_rows_of_the_test_split_score_as_the_split_does(workshop: Workshop, capsys: Capture, tmp_path: Path) -> None:
    output = trained(workshop, "sequence")
    assert main(["evaluate", str(output)]) == 0
    own = json.loads(capsys.readouterr().out)
    kept = (output / "evaluation" / "test.json").read_bytes()
    source = Path(workshop.base["data"]["path"]) / TASKS["sequence"]["data"]["test"]
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(source.read_bytes())
    source.rename(source.with_suffix(".away"))  # neither it nor the training file is needed
    training = source.parent / TASKS["sequence"]["data"]["train"]
    training.rename(training.with_suffix(".away"))
    try:
        half = tmp_path / "half.jsonl"
        half.write_text("".join(moved.read_text().splitlines(keepends=True)[:5]))
        assert main(["evaluate", str(output), "--data", str(moved), "--data", str(half)]) == 0
    finally:
        for file in (source, training):
            file.with_suffix(".away").rename(file)
    found = json.loads(capsys.readouterr().out)
    assert [(one["split"], one["rows"]) for one in found] == [("elsewhere.jsonl", own_rows(moved)), ("half.jsonl", 5)]
    assert {name: found[0][name] for name in own} == own
    assert found[0]["digest"] != found[1]["digest"]
    names = {file.name for file in (output / "evaluation").iterdir()}
    assert len(names) == 6  # scores and predictions of each, and of the run's own split
    assert (output / "evaluation" / "test.json").read_bytes() == kept


def own_rows(file: Path) -> int:
    return len(file.read_text().splitlines())


def relabelled(source: Path, target: Path, names: dict[str, str]) -> Path:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    target.write_text("".join(json.dumps({**row, "label": names[row["label"]]}) + "\n" for row in rows))
    return target


def test_labels_are_mapped_and_unknown_ones_refused(workshop: Workshop, capsys: Capture, tmp_path: Path) -> None:
    output = trained(workshop, "sequence")
    source = Path(workshop.base["data"]["path"]) / TASKS["sequence"]["data"]["test"]
    other = relabelled(source, tmp_path / "other.jsonl", {"people": "1", "places": "0"})
    assert main(["evaluate", str(output), "--data", str(source)]) == 0
    (own,) = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(output), "--data", str(other)]) == 2
    said = capsys.readouterr().err
    assert "There: 0, 1; in training: people, places" in said
    assert "--label-map" in said
    mapping = ["--label-map", "1=people", "--label-map", "0=places"]
    assert main(["evaluate", str(output), "--data", str(other), *mapping]) == 0
    (mapped,) = json.loads(capsys.readouterr().out)
    assert {name: mapped[name] for name in ("accuracy", "f1", "loss")} == {
        name: own[name] for name in ("accuracy", "f1", "loss")
    }
    assert main(["evaluate", str(output), "--data", str(other), "--label-map", "1=poeple"]) == 2
    assert "the adapter knows no poeple; allowed: people, places" in capsys.readouterr().err


def test_types_of_entities_are_mapped(workshop: Workshop, capsys: Capture, tmp_path: Path) -> None:
    output = trained(workshop, "token")
    source = Path(workshop.base["data"]["path"]) / workshop.base["data"]["test"]
    text = source.read_text()
    types = sorted({line.split()[-1][2:] for line in text.splitlines() if line.split() and "-" in line.split()[-1]})
    renamed = tmp_path / "renamed.conll"
    for kind in types:
        text = text.replace(f"B-{kind}", f"B-x{kind}").replace(f"I-{kind}", f"I-x{kind}")
    renamed.write_text(text)
    mapping = [part for kind in types for part in ("--label-map", f"x{kind}={kind}")]
    results: list[Any] = []
    for arguments in ([str(source)], [str(renamed), *mapping]):
        assert main(["evaluate", str(output), "--data", *arguments]) == 0
        results += json.loads(capsys.readouterr().out)
    assert results[0]["f1"] == results[1]["f1"]
    assert results[0]["per_type"] == results[1]["per_type"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--test", "a.jsonl"], "--test and --label-map go with --data"),
        (["--data", "x", "--split", "validation"], "--split names one of the run's own data"),
        (["--data", ".", "--label-map", "people"], "write OLD=NEW"),
    ],
)
def test_what_cannot_be_scored(workshop: Workshop, capsys: Capture, arguments: list[str], said: str) -> None:
    output = trained(workshop, "sequence")
    assert main(["evaluate", str(output), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (output / "evaluation").exists()
