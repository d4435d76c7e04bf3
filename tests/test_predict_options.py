"""`sktune predict`: batches, what is drawn, where a text ends, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import TASKS, Workshop

from sktune import inference
from sktune.cli import main

Capture = pytest.CaptureFixture[str]


class Killed(BaseException):
    """Nothing catches it."""


def file_of_texts(workshop: Workshop, folder: Path) -> Path:
    source = Path(workshop.base["data"]["path"]) / "test.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    file = folder / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in texts))
    return file


def answers(capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("method", [{}, {"name": "sk_prompt"}, {"name": "lora", "text": ...}], ids=str)
def test_texts_written_together_are_those_written_alone(
    workshop: Workshop, capsys: Capture, tmp_path: Path, method: dict[str, Any]
) -> None:
    workshop.train("run", TASKS["generation"], {"method": method})
    run, file = str(workshop.output("run")), str(file_of_texts(workshop, tmp_path))
    alone = answers(capsys, run, file, "--batch-size", "1", "--max-new-tokens", "5")
    together = answers(capsys, run, file, "--batch-size", "8", "--max-new-tokens", "5")
    assert alone == together
    assert len({len(answer["text"]) for answer in alone}) > 1
    if not method:
        assert any(answer["generated"] for answer in alone)


def test_drawn_texts_are_those_of_their_seed_and_end_where_they_are_told(workshop: Workshop, capsys: Capture) -> None:
    workshop.train("run", TASKS["generation"])
    run = [str(workshop.output("run")), "--text", "w4 w9", "--max-new-tokens", "12", "--temperature", "5"]
    (first,), (again,), (other,) = (answers(capsys, *run, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    words = first["generated"].split()
    assert len(words) > 3
    (cut,) = answers(capsys, *run, "--seed", "1", "--stop", words[2])
    assert cut["generated"] == first["generated"].partition(words[2])[0].strip()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-p", "0.9"], "nothing is drawn at temperature 0"),
        (["--temperature", "-1"], "--temperature: -1.0; allowed: 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: 0; allowed: 1 or more"),
        (["--temperature", "1"], "answers without writing a text"),
        (["--batch-size", "0"], "--batch-size: 0; allowed: 1 or more"),
        (["--resume"], "--resume goes with a file and --output"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    workshop: Workshop, capsys: Capture, options: list[str], said: str
) -> None:
    workshop.train("run", TASKS["sequence"], {"training": {"max_steps": 1, "warmup_steps": None}})
    assert main(["predict", str(workshop.output("run")), "--text", "w4", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_stopped_prediction_goes_on(
    workshop: Workshop, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.train("run", TASKS["sequence"])
    run, file = str(workshop.output("run")), file_of_texts(workshop, tmp_path)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    command = ["predict", run, str(file), "--output", str(resumed), "--resume", "--batch-size", "2"]
    monkeypatch.setattr(inference, "BATCHES_SORTED", 1)  # the same batches, wherever it goes on
    assert main(["predict", run, str(file), "--output", str(whole), "--batch-size", "2"]) == 0
    read = inference.answers_of
    calls: list[int] = []

    def killed(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 4:
            raise Killed
        return read(*arguments)

    monkeypatch.setattr(inference, "answers_of", killed)
    with pytest.raises(Killed):
        main(command)
    assert not resumed.exists()
    partial = tmp_path / "resumed.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 6
    with partial.open("a") as kept:
        kept.write('{"line": 7, "te')  # in the middle of a line
    changed = tmp_path / "changed.txt"
    changed.write_text(file.read_text() + "w5\n")
    assert main(["predict", run, str(changed), *command[3:]]) == 2
    assert "was begun with other texts" in capsys.readouterr().err
    calls[:] = [0] * 9
    assert main(command) == 0
    assert sum(calls) == len(file.read_text().splitlines()) - 6
    assert resumed.read_text() == whole.read_text()
    assert not partial.exists()


def test_only_the_likeliest_labels_are_shown(workshop: Workshop, capsys: Capture) -> None:
    workshop.train("run", TASKS["sequence"])
    run = [str(workshop.output("run")), "--text", "w4"]
    (every,), (one,) = answers(capsys, *run), answers(capsys, *run, "--top-k", "1")
    assert len(every["probabilities"]) == 2
    assert one["probabilities"] == {every["label"]: every["probabilities"][every["label"]]}
