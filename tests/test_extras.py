"""Pictures are extras: a run or a report that cannot have one is complete without it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from training_fixtures import TASKS, Workshop, tracked

from sktune.comparison import pictures
from sktune.comparison.report import Entry, Report, Spread
from sktune.comparison.tables import as_markdown, write_report
from sktune.tracking import figures
from sktune.tracking.record import Record

HEAD = {"method": {"name": "head_only", "text": ..., "rank": ...}}
SHORT = {"training": {"max_steps": 1, "eval_steps": ..., "warmup_steps": 0}}


@pytest.mark.parametrize("task", ["token", "sequence"])
def test_a_picture_that_fails_leaves_the_run_finished(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    def fail(*_: object) -> Path:
        raise MemoryError("\ntoo large")

    monkeypatch.setattr(figures, "_save", fail)
    with caplog.at_level(logging.WARNING, logger="sktune"):
        workshop.train("run", TASKS[task], HEAD, SHORT, tracked(workshop.folder / "mlflow.db"))
    assert Record.load(workshop.output("run")).state.status == "FINISHED"
    assert "MemoryError: too large" in caplog.text
    assert (workshop.output("run") / "predictions" / "test.jsonl").is_file()


def report_of(labels: list[str]) -> Report:
    one = Spread(0.5, 0.1, 2)
    entries = tuple(
        Entry(label, "lora", {}, 2, 2, one, one, {"f1": one}, 10 + i, 3.0, 2, one, 1e6, 1e3, one, {1: one, 2: one})
        for i, label in enumerate(labels)
    )
    return Report("r", "t", "f1", "test", "none", entries, 0.4, 0.1, "majority class ($a_|\nb$)", {}, (), {}, {})


@pytest.mark.parametrize("labels", [["$10_$20", "$x_{"], [f"method {i}" for i in range(200)]])
def test_a_report_draws_any_names_and_any_number_of_them(tmp_path: Path, labels: list[str]) -> None:
    files = write_report(report_of(labels), tmp_path)
    assert sum(path.suffix == ".png" for path in files) == 3


def test_names_do_not_break_markdown_tables() -> None:
    (line,) = [line for line in as_markdown(report_of(["a|b"])).splitlines() if "majority" in line]
    assert "($a_\\| b$)" in line


def test_a_picture_that_fails_leaves_the_report_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(pictures, "draw_curves", fail)
    files = [path.name for path in write_report(report_of(["a"]), tmp_path)]
    assert "metric_over_steps.png" not in files
    assert {"report.md", "score_against_parameters.png"} <= set(files)
