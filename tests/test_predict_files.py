"""`sktune predict` on files of every format: each record answered in order, by its line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import TASKS, Workshop

from sktune.cli import main

QUICK: dict[str, Any] = {
    "training": {"max_steps": 3, "warmup_steps": 0, "eval_steps": ..., "per_device_eval_batch_size": 2},
    "data": {"validation": None, "test": None},
}
TEXTS = ["w1 w2 w3", "w10", "w11 w12 w13 w14 w15 w16", "w4", "w2 w20"]


def predict(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_every_format_gives_the_same_answers_in_order(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    output = workshop.output("run")
    typed = predict(capsys, output, *(part for text in TEXTS for part in ("--text", text)))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(TEXTS).encode())
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS))
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},\n" for text in TEXTS))
    (tmp_path / "a.tsv").write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    for name, first in (("a.txt", 1), ("a.jsonl", 1), ("a.csv", 2), ("a.tsv", 2), ("a.csv.gz", 2), ("a.parquet", 1)):
        answers = predict(capsys, output, tmp_path / name)
        assert [answer["line"] for answer in answers] == list(range(first, first + len(TEXTS))), name
        assert [answer["text"] for answer in answers] == TEXTS, name
        for answer, alone in zip(answers, typed, strict=True):
            assert answer["label"] == alone["label"]
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    renamed = tmp_path / "b.jsonl"
    renamed.write_text('{"said": {"en": "w1"}}\n')
    assert "no column 'text'" in refused(capsys, output, renamed)
    assert predict(capsys, output, renamed, "data.text_column=said.en")[0]["text"] == "w1"


def test__line_that_cannot_be_read_is_named_or_left_out(
    workshop: Workshop,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    output, answers = workshop.output("run"), tmp_path / "answers.jsonl"
    files = {
        "a.jsonl": (
            '{"text": "w1"}\n{"text": \n{"text": "w2"}\n{"text": null}\n{"text": ["w3"]}\n[1]\n',
            {1: "w1", 3: "w2"},
            4,
        ),
        "a.csv": ("text,label\nw1,\nw2,x,y\nw3,\n", {2: "w1", 4: "w3"}, 1),
    }
    for name, (content, kept, broken) in files.items():
        file = tmp_path / name
        file.write_text(content)
        message = refused(capsys, output, file, "--output", answers)
        first = next(number for number in range(1, 9) if number > 1 and number not in kept)
        assert f"{name}:{first}" in message
        assert "--on-error skip" in message
        assert not answers.exists()
        caplog.clear()
        assert main(["predict", str(output), str(file), "--on-error", "skip", "--output", str(answers)]) == 0
        found = [json.loads(line) for line in answers.read_text().splitlines()]
        assert {answer["line"]: answer["text"] for answer in found} == kept
        said = [line for line in caplog.messages if "skipped" in line]
        assert len(said) == broken + 1
        assert f"{broken} of {broken + len(kept)} skipped" in said[-1]
        answers.unlink()


def test_pairs_come_from_two_columns(workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workshop.train("run", TASKS["pair"], QUICK)
    output, file = workshop.output("run"), tmp_path / "pairs.csv"
    file.write_text('premise,hypothesis\n"w1, w2",w3\nw4,\n')
    answers = predict(capsys, output, file)
    assert [(answer["text"], answer["text_pair"]) for answer in answers] == [("w1, w2", "w3"), ("w4", "")]
    file.with_suffix(".txt").write_text("w1\n")
    assert "was trained on pairs" in refused(capsys, output, file.with_suffix(".txt"))


def test_words_come_and_go_as_columns(workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workshop.train("run", QUICK, {"training": {"max_steps": 8}, "data": {"max_length": 16}})
    output = workshop.output("run")
    sentences = [["w1", "w30", "w12"], ["w2"], ["w29"] * 40]
    tagged, alone, lists = tmp_path / "a.conll", tmp_path / "b.conll", tmp_path / "c.jsonl"
    tagged.write_text("# a comment here\n" + "\n".join("".join(f"{word} X\n" for word in words) for words in sentences))
    alone.write_text("\n".join("".join(f"{word}\n" for word in words) for words in sentences))
    lists.write_text("".join(json.dumps({"tokens": words}) + "\n" for words in sentences))
    typed = predict(capsys, output, *(part for words in sentences for part in ("--text", " ".join(words))))
    for file, lines in ((tagged, [2, 6, 8]), (alone, [1, 5, 7]), (lists, [1, 2, 3])):
        answers = predict(capsys, output, file)
        assert [answer["line"] for answer in answers] == lines
        assert [(answer["words"], answer["tags"]) for answer in answers] == [(a["words"], a["tags"]) for a in typed]
    written = tmp_path / "out.conll"
    assert main(["predict", str(output), str(tagged), "--output", str(written)]) == 0
    blocks = [[line.split("\t") for line in block.split("\n")] for block in written.read_text().strip().split("\n\n")]
    assert [[word for word, _ in block] for block in blocks] == sentences
    assert [tag for _, tag in blocks[0]] == typed[0]["tags"]
    assert [tag for _, tag in blocks[2]][-1] == "_"  # cut off, so not read


def test__table_has_a_column_for_each_probability(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    workshop.train("run", TASKS["sequence"], QUICK, {"data": {"max_length": 8}})
    output, file, table = workshop.output("run"), tmp_path / "a.txt", tmp_path / "out.csv"
    file.write_text("w1\n\n" + "w2 " * 30 + "\n" + "w3 " * 30 + "\n")
    caplog.clear()
    assert main(["predict", str(output), str(file), "--output", str(table)]) == 0
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["line"] for row in rows] == ["1", "2", "3", "4"]
    assert set(rows[0]) == {"line", "text", "label", "probabilities.people", "probabilities.places"}
    (said,) = [line for line in caplog.messages if "truncated" in line]
    assert said == f"2 inputs truncated to 8 tokens: {file}:3, {file}:4"
    assert "no known ending" in refused(capsys, output, file, "--output", tmp_path / "out.xlsx")
    assert "holds no text" in refused(capsys, output, _empty(tmp_path / "empty.jsonl"))
    assert "would hold tagged words" in refused(capsys, output, file, "--output", tmp_path / "out.conll")
    assert "give --text or a file" in refused(capsys, output, file, "--text", "w1")


def _empty(path: Path) -> Path:
    path.write_text("")
    return path
