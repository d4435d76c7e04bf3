"""`sktune predict`: batches, what is drawn, where a text ends, and going on after a kill."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import ROOT, TASKS, Start, Workshop, deepspeed_command

from sktune import answering
from sktune.cli import main
from sktune.tasks.token_classification.task import entities

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
    monkeypatch.setattr(answering, "BATCHES_SORTED", 1)  # the same batches, wherever it goes on
    assert main(["predict", run, str(file), "--output", str(whole), "--batch-size", "2"]) == 0
    read = answering.answers_of
    calls: list[int] = []

    def killed(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 4:
            raise Killed
        return read(*arguments)

    monkeypatch.setattr(answering, "answers_of", killed)
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


@pytest.mark.distributed
@pytest.mark.parametrize("task", ["generation", "sequence", "token"])
def test_several_ranks_that_share_the_backbone_answer_as_one(
    workshop: Workshop, capsys: Capture, tmp_path: Path, start: Start, task: str
) -> None:
    zero3 = {"distributed": {"deepspeed": "zero3"}}
    workshop.train("run", TASKS[task], zero3)
    run, file = str(workshop.output("run")), str(file_of_texts(workshop, tmp_path))
    options = ["--batch-size", "2", *(["--max-new-tokens", "9", "--temperature", "1"] if task == "generation" else [])]
    alone, output = answers(capsys, run, file, *options), tmp_path / "together.jsonl"
    command = [ROOT / "launchers" / "predict.py", run, file, *options, "--output", str(output), "--resume"]
    running = start(deepspeed_command(*command))
    assert running.wait(120) == 0, running.output()[-3000:]
    together = [json.loads(line) for line in output.read_text().splitlines()]
    assert f"{len(alone)} answers: {output}" in running.output()
    for one, other in zip(alone, together, strict=True):
        assert one.pop("probabilities", {}) == pytest.approx(other.pop("probabilities", {}), abs=1e-5)
        assert one == other


def test_a_text_is_shown_while_it_is_written(workshop: Workshop, capsys: Capture) -> None:
    workshop.train("run", TASKS["generation"])
    command = ["predict", str(workshop.output("run")), "--text", "w4 w9", "--text", "w8"]
    command += ["--max-new-tokens", "12", "--temperature", "5"]
    pieces: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return super().write(text)

    said: dict[str, str] = {}
    for how in ("--stream", "--no-stream"):
        with contextlib.redirect_stdout(Terminal()) as terminal:
            assert main([*command, how, "--batch-size", "1"]) == 0
        said[how] = terminal.getvalue()
        if how == "--stream":
            assert sum(bool(piece.strip()) for piece in pieces) > 12
    first, second = answers(capsys, *command[1:], "--batch-size", "1")
    assert said["--stream"].startswith(f"w4 w9\n  -> {first['generated']}\nw8\n  -> ")
    # Each text is drawn alone, whether it is shown meanwhile or not.
    assert said["--stream"] == said["--no-stream"]
    assert said["--stream"].endswith(f"{second['generated']}\n")
    stop = first["generated"].split()[2]
    with contextlib.redirect_stdout(Terminal()) as terminal:
        assert main([*command, "--stream", "--stop", stop]) == 0
    assert terminal.getvalue().startswith(f"w4 w9\n  -> {first['generated'].partition(stop)[0].strip()}\nw8\n")
    assert main([*command, "--stream", "--json"]) == 2
    assert "not with --json or --output" in capsys.readouterr().err


def test_entities_are_given_with_their_places(workshop: Workshop, capsys: Capture, tmp_path: Path) -> None:
    workshop.train("run", {"training": {"max_steps": 20, "eval_steps": ...}})
    text = "  w1   w2\tw15 w30, w12 w1 w1\u2003w19"
    lines, columns = tmp_path / "a.txt", tmp_path / "a.conll"
    lines.write_text(text + "\n")
    columns.write_text("".join(f"{word}\n" for word in text.split()))
    run = str(workshop.output("run"))
    for arguments in (["--text", text], [str(lines)], [str(columns)]):
        (found,) = answers(capsys, run, *arguments)
        assert len(found["entities"]) > 2
        for entity in found["entities"]:
            assert found["text"][entity["start"] : entity["end"]] == entity["text"]
        places = [entity["start"] for entity in found["entities"]]
        assert places == sorted(set(places))


def test_entities_of_words_with_words_in_between() -> None:
    text = "New  York, New York\tState"
    found = entities(text.split(), ["B-LOC", "I-LOC", "O", "B-LOC", "I-LOC"], text)
    assert found == [
        {"text": "New  York,", "type": "LOC", "start": 0, "end": 10},
        {"text": "York\tState", "type": "LOC", "start": 15, "end": 25},
    ]
