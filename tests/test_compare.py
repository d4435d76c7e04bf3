"""Comparisons: what is planned and refused, what is run once, and every number of the report."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from training_fixtures import (
    ONE_RANK,
    ROOT,
    TASKS,
    Sections,
    Start,
    Workshop,
    assert_same_run,
    deepspeed_command,
    tracked,
)

from sktune.cli import main
from sktune.cli.compare import overrides_of
from sktune.comparison import runner
from sktune.comparison.cells import plan_cells
from sktune.comparison.floor import constant_answer
from sktune.comparison.mlflow_results import read_experiment
from sktune.comparison.report import Spread, build_report
from sktune.comparison.results import CellState, ComparisonState, load_state, read_results
from sktune.comparison.tables import as_csv, as_json, as_markdown, write_report
from sktune.data import load_splits
from sktune.files import locked
from sktune.recipe import RecipeError, load_recipe, load_recipe_document
from sktune.tasks.task import build_task
from sktune.training.checkpoint import checkpoint_path
from sktune.training.meters import peak_memory, reset_peak_memory
from sktune.training.run import train

TEXT_PREFIX = {"name": "prefix_tuning", "init": "text"}
TWICE = ("--grid", "training.learning_rate=1e-3", "--grid", "training.learning_rate=3e-3")
NO_VALIDATION = ("data.validation=null", "training.eval_steps=null")
SHORT: Sections = {"training": {"max_steps": 4, "eval_steps": 2}}


def comparing(**section: Any) -> Sections:
    return {**SHORT, "compare": section}


def statuses(folder: Path) -> dict[str, str]:
    return {cell.name: cell.status for cell in load_state(folder).cells}


# -- the plan ---------------------------------------------------------------------------------------------------


def test_cells_are_methods_times_grid_times_seeds_and_differ_in_nothing_else(workshop: Workshop) -> None:
    recipe = workshop.write(
        "plan",
        comparing(
            methods={"lora_4": {"name": "lora", "rank": 4}, "prefix_text": TEXT_PREFIX, "sk_prefix": {"rank": 2}},
            grid={"task.labelled_piece": ["first", "last"], "training.learning_rate": [1e-3, 1e-2]},
            seeds=2,
        ),
    )
    cells, refused, base = plan_cells(recipe, [], workshop.folder / "out")
    assert refused == []
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 4 * 2
    assert cells[0].name == "lora_4-labelled_piece=first-learning_rate=0.001-seed42"
    assert cells[-1].name == "sk_prefix-labelled_piece=last-learning_rate=0.01-seed43"
    assert cells[0].method == "lora"
    # The text was not given: both read the recipe's.
    for cell in (cells[-1], next(cell for cell in cells if cell.label == "prefix_text")):
        assert cell.loaded.recipe.method.text == base.recipe.method.text  # type: ignore[union-attr]
    varied = {"training.learning_rate", "task.labelled_piece", "training.seed"}
    settings = [cell.settings() for cell in cells]
    for one in settings:
        differing = {key for key in {*one, *settings[0]} if one.get(key) != settings[0].get(key)}
        assert {key for key in differing if not key.startswith("method.")} <= varied
    folders = {cell.loaded.recipe.output.dir for cell in cells}
    assert folders == {str(workshop.folder / "out" / "cells" / cell.name) for cell in cells}


def test_a_cell_is_the_recipe_with_its_overrides(workshop: Workshop) -> None:
    recipe = workshop.write("plan", SHORT)
    cells, _, _ = plan_cells(recipe, ["training.max_steps=3"], workshop.folder / "out", ["lora", "sk_prefix"])
    for cell in cells:
        again = load_recipe(recipe, ["training.max_steps=3", *cell.overrides])
        assert again.method == cell.loaded.recipe.method
        assert again.training == cell.loaded.recipe.training.model_copy(update={"resume": "never"})
    assert cells[1].loaded.recipe.method == load_recipe(recipe).method


def test_what_does_not_read_a_rate_is_not_run_at_each(workshop: Workshop) -> None:
    grid = {"training.learning_rate": [1e-3, 1e-2], "data.max_length": [16, 32]}
    recipe = workshop.write(
        "idle", TASKS["sequence"], comparing(methods={"head_only": {}, "in_context": {}, "lora": {}}, grid=grid)
    )

    def count(*overrides: str) -> dict[str, int]:
        cells, refused, _ = plan_cells(recipe, overrides, workshop.folder / "out")
        assert refused == []
        return {label: sum(cell.label == label for cell in cells) for label in ("head_only", "in_context", "lora")}

    assert count("training.head_learning_rate=1e-2") == {"head_only": 2, "in_context": 2, "lora": 4}
    assert count("training.head_learning_rate=null") == {"head_only": 4, "in_context": 2, "lora": 4}


def test_a_method_has_a_grid_of_its_own_until_one_is_typed(workshop: Workshop) -> None:
    section = comparing(
        methods={"lora": {}, "sk_prefix": {"rank": 2}},
        grid={"training.learning_rate": [1e-2, 1e-1], "task.labelled_piece": ["first", "last"]},
        own_grids={"lora": {"training.learning_rate": [1e-4]}},
    )
    recipe = workshop.write("own_grids", section)

    def rates(label: str, *overrides: str) -> list[float]:
        cells, _, _ = plan_cells(recipe, overrides, workshop.folder / "out")
        return sorted(cell.loaded.recipe.training.learning_rate for cell in cells if cell.label == label)

    assert rates("lora") == [1e-4, 1e-4]
    assert rates("sk_prefix") == [1e-2, 1e-2, 1e-1, 1e-1]
    typed = overrides_of([], None, ["training.learning_rate=1e-3"])
    assert rates("lora", *typed) == rates("sk_prefix", *typed) == [1e-3]


def test_what_cannot_work_is_refused_at_once_with_field_and_reason(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = {"quantization": {"load_in_4bit": True}}
    recipe = workshop.write("refused", quantized, comparing(methods={"lora": {}, "full": {}, "top_layers": {}}))
    assert main(["compare", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "2 of the methods" in message
    assert "full: method.name" in message
    assert "top_layers: method.name" in message
    assert "no gradient in 4 bits" in message
    assert "--skip-refused" in message
    assert not workshop.output("refused").exists()


def test_methods_of_the_section_are_checked_with_the_recipe(workshop: Workshop) -> None:
    recipe = workshop.write("wrong", comparing(methods={"lora": {"rnk": 2}, "prefix_tuning": {"text": "which ?"}}))
    with pytest.raises(RecipeError) as caught:
        load_recipe_document(recipe, comparing=True)
    problems = {problem.field: problem for problem in caught.value.problems}
    assert set(problems) == {"compare.methods.lora.rnk", "compare.methods.prefix_tuning.text"}
    assert "would do nothing" in problems["compare.methods.prefix_tuning.text"].message


def test_a_text_that_nothing_gives_is_asked_for(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = workshop.write("textless", comparing(methods={"sk_prefix": {}, "head_only": {}}))
    other = ["method={name: head_only}"]
    load_recipe(recipe, other)  # a single run goes its way
    assert main(["compare", str(recipe), *other]) == 2
    assert "sk_prefix: method.text" in capsys.readouterr().err


def test_a_single_run_knows_nothing_of_the_section(workshop: Workshop) -> None:
    plain = load_recipe_document(workshop.write("same", SHORT))
    compared = load_recipe_document(workshop.write("same", comparing(methods={"lora": {}}, seeds=3)))
    assert plain.loggable() == compared.loggable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lora,loar"], "did you mean lora?"),
        ([], "compare.methods: nothing to compare"),
        (["--methods", "lora", "--grid", "training.learning_rate"], "--grid: 'training.learning_rate' is not"),
        (["--methods", "lora", "--grid", "training.learning_rte=1e-3"], "did you mean training.learning_rate?"),
        (["--methods", "lora", "--seeds", "0"], "compare.seeds"),
        (["--methods", "lora", *TWICE], "--grid: training.learning_rate is given twice"),
        (["--methods", "lora", "output.overwrite=true"], "output.overwrite=true: a comparison never writes over"),
        (["--methods", "lora", "training.resume=auto"], "training.resume=auto: a comparison always goes on"),
        (["method.rank=16", "compare.methods={sk_prefix: {rank: 2}}"], "method.rank=16: would do nothing"),
        (["--methods", "lora", "--output", "/dev/null/folder"], "/dev/null"),
        (
            ["--methods", "lora", "--grid", "training.learning_rate=1e-3,2e-3", *NO_VALIDATION],
            "compare.select: the grid has several points",
        ),
    ],
)
def test_a_wrong_command_is_told_what_to_do(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compare", str(workshop.write("wrong", SHORT)), *arguments]) == 2
    assert message in capsys.readouterr().err


# -- the report -------------------------------------------------------------------------------------------------


def made(
    folder: Path, cells: list[dict[str, Any]], metric: str = "f1", select: str = "validation", **more: Any
) -> Path:
    """A comparison's folder, written by hand."""
    states = []
    for number, cell in enumerate(cells):
        cell = {"label": "sk_prefix", "grid": {}, "seed": 42, "status": "finished", "curve": {}, **cell}
        place = folder / "cells" / str(number)
        place.mkdir(parents=True)
        lines = [
            {"step": step, "time": 0, "metrics": {f"validation/{metric}": value, "validation/loss": 9.0}}
            for step, value in cell.pop("curve").items()
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "me')
        state = {"name": f"cell{number}", "method": cell["label"], "folder": f"cells/{number}", "overrides": []}
        states.append(CellState(**state, curves=f"cells/{number}/metrics.jsonl", settings={}, **cell))
    ComparisonState(
        name="made", recipe="r.yaml", overrides=[], task="token_classification", metric=metric, select=select,
        cells=states, **more,
    ).save(folder)  # fmt: skip
    return folder


def summary(validation: float, test: float, metric: str = "f1", **more: float) -> dict[str, float]:
    return {f"validation/{metric}": validation, f"test/{metric}": test, "trainable_parameters": 1000, **more}


def test_the_numbers_of_the_report(tmp_path: Path) -> None:
    speed, memory = "speed/real_tokens_per_second", "memory/peak_bytes"
    first, second = {"wall_seconds": 9.0, "test/loss": 0.5}, {"wall_seconds": 11.0, "test/loss": 0.7}
    low, high = {"training.learning_rate": 0.001}, {"training.learning_rate": 0.01}
    folder = made(
        tmp_path,
        [
            # Best on test, not on validation: not chosen.
            {"grid": low, "seed": 1, "summary": summary(0.5, 0.9)},
            {"grid": low, "seed": 2, "summary": summary(0.5, 0.9)},
            {
                "grid": high, "seed": 1, "curve": {5: 0.4, 10: 0.8},
                "summary": summary(0.8, 0.70, adapter_bytes=4000, **{speed: 100.0, memory: 5e6}, **first),
            },
            {
                "grid": high, "seed": 2, "curve": {5: 0.77, 10: 0.78},
                "summary": summary(0.78, 0.74, adapter_bytes=4000, **{speed: 140.0, memory: 6e6}, **second),
            },
            {"label": "lora", "grid": low, "seed": 1, "curve": {5: 0.3, 10: 0.6}, "summary": summary(0.6, 0.5)},
            {"label": "lora", "grid": low, "seed": 2, "status": "failed", "error": "ValueError: no"},
            {"label": "lora", "grid": high, "seed": 1, "status": "failed", "error": "FloatingPointError: nan"},
            {"label": "lora", "grid": high, "seed": 2, "status": "planned"},
            {"label": "ia3", "grid": low, "seed": 1, "curve": {5: 0.76, 10: 0.4}, "summary": summary(0.76, 0.6)},
            {"label": "ia3", "grid": low, "seed": 2, "curve": {5: 0.2, 10: 0.3}, "summary": summary(0.3, 0.6)},
        ],
        floor={"name": "all O", "test": {"f1": 0.25, "accuracy": 0.8}, "validation": {"f1": 0.1}},
    )  # fmt: skip
    report = build_report(read_results(folder))
    assert (report.split, report.metric, report.floor) == ("test", "f1", 0.25)
    assert report.target == pytest.approx(0.95 * 0.79)  # 0.7505
    assert [entry.label for entry in report.entries] == ["sk_prefix", "ia3", "lora"]

    best, ia3, lora = report.entries
    assert best.grid == high
    assert best.score == Spread(pytest.approx(0.72), pytest.approx(0.02 * 2**0.5), 2)
    assert best.validation == Spread(pytest.approx(0.79), pytest.approx(0.01 * 2**0.5), 2)
    assert best.scores["loss"].mean == pytest.approx(0.6)
    assert (best.steps_to_target, best.reached) == (7.5, 2)  # step 10 of one seed, step 5 of the other
    assert best.tokens_per_second == Spread(120.0, pytest.approx(20 * 2**0.5), 2)
    assert best.seconds == Spread(10.0, pytest.approx(2**0.5), 2)
    assert (best.peak_bytes, best.adapter_bytes, best.trainable_parameters) == (6e6, 4000, 1000)
    assert best.curve == {
        5: Spread(pytest.approx(0.585), pytest.approx(0.185 * 2**0.5), 2),
        10: Spread(pytest.approx(0.79), pytest.approx(0.01 * 2**0.5), 2),
    }
    assert (ia3.steps_to_target, ia3.reached) == (None, 1)
    # One seed of lora's first point is all that finished: no deviation, and it says so.
    assert (lora.finished, lora.planned, lora.grid, lora.score) == (1, 2, low, Spread(0.5, None, 1))
    assert (lora.steps_to_target, lora.reached, lora.tokens_per_second, lora.adapter_bytes) == (None, 0, None, None)
    assert report.failed == {"cell5": "ValueError: no", "cell6": "FloatingPointError: nan"}
    assert report.unfinished == ("cell7",)
    assert report.steps_by_cell["cell2"] == 10
    assert report.steps_by_cell["cell4"] is None

    lines = {line.split("|")[1].strip(): line for line in as_markdown(report).splitlines() if line.startswith("|")}
    row = [cell.strip() for cell in lines["sk_prefix"].split("|")[1:-1]]
    assert row == [
        "sk_prefix", "learning_rate 0.01", "0.7200 ± 0.0283", "0.7900 ± 0.0141", "2", "1,000", "8", "120",
        "10", "6.0 MB", "4.0 kB",
    ]  # fmt: skip
    assert "1 of 2 seeds" in lines["ia3"]
    assert "not reached" in lines["lora"]
    assert "1 of 2" in lines["lora"]
    assert "0.2500" in lines["all O"]

    table = {line["label"]: line for line in csv.DictReader(io.StringIO(as_csv(report)))}
    assert float(table["sk_prefix"]["test/f1"]) == pytest.approx(0.72)
    assert float(table["sk_prefix"]["training.learning_rate"]) == 0.01
    assert table["lora"]["test/f1_std"] == table["lora"]["steps_to_target"] == ""
    assert table["all O"]["test/f1"] == "0.25"
    assert json.loads(as_json(report))["entries"][0]["score"]["mean"] == pytest.approx(0.72)


def test_a_loss_is_better_when_it_is_lower(tmp_path: Path) -> None:
    folder = made(
        tmp_path,
        [
            {"curve": {5: 0.43, 10: 0.40}, "summary": summary(0.40, 0.5, "mse")},
            {"label": "lora", "curve": {5: 0.42, 10: 0.41}, "summary": summary(0.41, 0.4, "mse")},
        ],
        metric="mse",
    )
    report = build_report(read_results(folder))
    assert report.target == pytest.approx(0.42)
    assert [(e.label, e.steps_to_target) for e in report.entries] == [("lora", 5.0), ("sk_prefix", 10.0)]


def test_without_selection_every_grid_point_has_its_line(tmp_path: Path) -> None:
    grids = [{"quantization.load_in_4bit": value} for value in (True, False)]
    cells = [{"grid": grid, "summary": summary(0.5, 0.4 + i)} for i, grid in enumerate(grids)]
    report = build_report(read_results(made(tmp_path, cells, select="none")))
    assert [entry.grid for entry in report.entries] == grids[::-1]
    assert "load_in_4bit False" in as_markdown(report)


def test_without_a_test_split_validation_is_reported(tmp_path: Path) -> None:
    folder = made(tmp_path, [{"summary": {"validation/f1": 0.5}, "curve": {3: 0.5}}], floor={"name": "all O"})
    report = build_report(read_results(folder))
    assert report.split == "validation"
    assert report.entries[0].score == Spread(0.5, None, 1)
    assert "all O" not in as_markdown(report)


def test_a_report_of_nothing_finished_is_still_one(tmp_path: Path) -> None:
    report = build_report(read_results(made(tmp_path, [{"status": "planned"}])))
    assert [path.name for path in write_report(report, tmp_path / "report")] == [
        "report.md",
        "report.csv",
        "report.json",
    ]
    assert "not finished: cell0" in as_markdown(report)


def test_constant_answers(workshop: Workshop) -> None:
    def floor(name: str, *sections: Sections) -> dict[str, Any]:
        recipe = load_recipe(workshop.write(name, *sections))
        task = build_task(recipe.task)
        found = constant_answer(load_splits(recipe.data, task), task)
        assert found is not None
        return found

    tokens = floor("tokens")
    assert (tokens["name"], tokens["test"]["f1"]) == ("all O", 0.0)
    assert 0 < tokens["test"]["accuracy"] < 1
    classes = floor("classes", TASKS["sequence"])
    lines = (Path(load_recipe(workshop.folder / "classes.yaml").data.path) / "test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["label"] for line in lines]
    majority = classes["name"].removeprefix("majority class (").removesuffix(")")
    assert classes["test"]["accuracy"] == pytest.approx(answers.count(majority) / len(answers))
    numbers = floor("numbers", TASKS["regression"])
    assert numbers["test"]["spearman"] == 0.0
    assert numbers["test"]["mse"] > 0
    free = load_recipe(workshop.write("free", TASKS["generation"]))
    task = build_task(free.task)
    assert constant_answer(load_splits(free.data, task), task) is None


# -- running ----------------------------------------------------------------------------------------------------


def test_a_comparison_runs_each_cell_once_and_is_found_again_in_mlflow(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    recipe = workshop.write("compared", SHORT, tracked(database))
    folder = workshop.output("compared")
    command = ["compare", str(recipe), "--methods", "sk_prefix,lora", "--grid", "training.learning_rate=1e-3,2e-2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "sk_prefix" in printed
    assert "learning_rate" in printed
    assert set(statuses(folder).values()) == {"finished"}
    assert len(statuses(folder)) == 4
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {
        "report.md", "report.csv", "report.json", "metric_over_steps.png", "score_against_parameters.png",
        "throughput_against_memory.png",
    }  # fmt: skip
    state = load_state(folder)
    assert state.environment["ranks"] == 1
    lora = state.cell("lora-learning_rate=0.02-seed42")
    weights = folder / lora.folder / "adapter" / "adapter.safetensors"
    assert 0 < lora.summary["adapter_bytes"] < weights.stat().st_size

    # A cell is the run that its recipe makes alone.
    again = load_recipe_document(
        recipe, [*lora.overrides, f"output.dir={tmp_path / 'alone'}", "tracking.enabled=false"]
    )
    train(again, ONE_RANK)
    assert_same_run(folder / lora.folder, tmp_path / "alone")

    # In MLflow: one parent, its cells nested below it, and the same report.
    uri = f"sqlite:///{database}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = {run.info.run_name: run for run in runs if run is not parent}
    assert len(nested) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    model = Path(load_recipe(recipe).model.name_or_path).name
    run = nested[f"lora-{model}-float32-learning_rate=0.02-seed42"]
    tags = {"method": "lora", "label": "lora", "grid.training.learning_rate": "0.02", "seed": "42", "ranks": "1"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["quantization"] == "float32"
    assert run.data.tags["steps_to_target"] in ("2", "4", "not reached")
    wanted = {"final/test/f1", "final/speed/real_tokens_per_second", "final/memory/peak_bytes", "final/adapter_bytes"}
    assert wanted - {"final/speed/real_tokens_per_second"} <= set(run.data.metrics)
    assert {entry.path for entry in client.list_artifacts(parent.info.run_id, "report")} >= {
        "report/report.md", "report/metric_over_steps.png", "report/comparison.json",
    }  # fmt: skip
    here, there = build_report(read_results(folder)), build_report(read_experiment("tests", uri))
    assert here.entries == there.entries
    assert (here.target, here.floor, here.failed) == (there.target, there.floor, there.failed)

    monkeypatch.chdir(tmp_path)  # where the recipe's store would lie by default
    assert main(["report", "tests"]) == 0
    assert (tmp_path / "runs" / "compared" / "report" / "report.md").exists()
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["report", "unknown", "--tracking-uri", uri]) == 2
    assert "no experiment 'unknown'" in capsys.readouterr().err

    # Nothing runs a second time; a new method is added to what is there.
    def refuse(*_: Any) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(runner, "train", refuse)
    assert main(command) == 0
    assert len(client.search_runs([experiment.experiment_id])) == 5
    monkeypatch.undo()
    assert main(["compare", str(recipe), "--methods", "head_only"]) == 0
    assert len(statuses(folder)) == 5

    # Another recipe is another comparison.
    capsys.readouterr()
    assert main([*command, "training.max_steps=3"]) == 2
    assert "training.max_steps was 4 and is 3" in capsys.readouterr().err


def test_a_failed_cell_does_not_stop_the_others(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"broken": {"name": "lora", "target_modules": ["no_such_layer"]}, "head_only": {}}
    recipe = workshop.write("failing", comparing(methods=methods))
    folder = workshop.output("failing")
    assert main(["compare", str(recipe)]) == 1
    assert statuses(folder) == {"broken-seed42": "failed", "head_only-seed42": "finished"}
    error = load_state(folder).cell("broken-seed42").error
    assert error is not None
    assert error.startswith("UserError: ")
    assert "no_such_layer" in error
    assert "Traceback" in (folder / "cells" / "broken-seed42" / "error.txt").read_text()
    assert "failed: broken-seed42" in capsys.readouterr().out

    # In one process even what nobody foresaw ends only its cell.
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "train", out_of_memory)
    assert main(["compare", str(recipe), "--methods", "ia3"]) == 1
    assert load_state(folder).cell("ia3-seed42").error == "RuntimeError: out of memory"
    monkeypatch.undo()

    # The cure changes the cell, which is then begun anew.
    assert main(["compare", str(recipe), "compare.methods={broken: {name: lora}}"]) == 0
    assert statuses(folder)["broken-seed42"] == "finished"
    assert not (folder / "cells" / "broken-seed42" / "error.txt").exists()


def test_killed_in_the_middle_of_a_cell_it_goes_on_from_there(workshop: Workshop, start: Start, tmp_path: Path) -> None:
    long: Sections = {"training": {"max_steps": 40, "eval_steps": 5, "save_steps": 5, "logging_steps": 5}}
    recipe = workshop.write("killed", long)
    command = ["compare", str(recipe), "--methods", "head_only,sk_prefix"]
    running = start([sys.executable, "-m", "sktune", *command])
    folder = workshop.output("killed")
    running.wait_for(checkpoint_path(folder / "cells" / "sk_prefix-seed42", 10))
    running.kill()
    assert statuses(folder) == {"head_only-seed42": "finished", "sk_prefix-seed42": "running"}
    finished = folder / "cells" / "head_only-seed42" / "summary.json"
    before = finished.stat().st_mtime_ns
    assert main(command) == 0
    assert statuses(folder) == {"head_only-seed42": "finished", "sk_prefix-seed42": "finished"}
    assert finished.stat().st_mtime_ns == before
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    cell = "cells/sk_prefix-seed42"
    assert_same_run(folder / cell, tmp_path / "whole" / cell)
    metrics = (folder / cell / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics].count(40) >= 1


def test_numbers_of_a_cell_killed_just_after_its_end_are_kept(workshop: Workshop) -> None:
    recipe = workshop.write("late", SHORT)
    folder = workshop.output("late")
    assert main(["compare", str(recipe), "--methods", "head_only", "training.max_steps=6"]) == 0
    state = load_state(folder)
    speed = state.cells[0].summary["speed/real_tokens_per_second"]
    state.cells[0].status, state.cells[0].summary = "running", {}
    state.save(folder)
    assert main(["compare", str(recipe), "--methods", "head_only", "training.max_steps=6"]) == 0
    assert load_state(folder).cells[0].summary["speed/real_tokens_per_second"] == speed


@pytest.mark.distributed
def test_two_ranks_stay_in_step_through_a_failed_cell(workshop: Workshop, start: Start) -> None:
    methods = {"broken": {"name": "lora", "target_modules": ["no_such_layer"]}, "head_only": {}}
    recipe = workshop.write("ranks", comparing(methods=methods))
    running = start(deepspeed_command(ROOT / "launchers" / "compare.py", "--recipe", recipe, "--seeds", "1"))
    assert running.wait(180) == 1, running.output()[-3000:]
    folder = workshop.output("ranks")
    assert statuses(folder) == {"broken-seed42": "failed", "head_only-seed42": "finished"}
    state = load_state(folder)
    assert state.environment["ranks"] == 2
    assert "memory/rank1/frozen_bytes" in state.cell("head_only-seed42").summary
    assert running.output().count("token_classification") == 1  # one table, of the main rank


def test_cells_of_one_folder_differ_in_method_seed_and_grid_alone(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = workshop.write("mixed", SHORT, {"task": {"name": "token_classification", "labelled_piece": "${PIECE}"}})
    monkeypatch.setenv("PIECE", "first")
    folder = workshop.output("mixed")
    state = _finished(recipe, folder, ["lora"])
    other, _, _ = plan_cells(recipe, ["training.max_steps=3"], folder, ["ia3"])
    with pytest.raises(ValueError, match=r"lora-seed42: training\.max_steps was 4 and is 3"):
        state.add(other, ONE)
    same, _, _ = plan_cells(recipe, ["compare.seeds=2"], folder, ["ia3"])
    with pytest.raises(ValueError, match="ranks was 1 and is 2"):
        state.add(same, {**ONE, "ranks": 2})
    # What `${PIECE}` stands for is compared, and not shown.
    monkeypatch.setenv("PIECE", "last")
    last, _, _ = plan_cells(recipe, [], folder, ["ia3"])
    with pytest.raises(ValueError, match=r"task.labelled_piece was '\$\{PIECE\} \(digest \w+\)' and is"):
        state.add(last, ONE)
    assert state.add(same, ONE) == []
    assert [cell.name for cell in state.cells] == ["lora-seed42", "ia3-seed42", "ia3-seed43"]
    monkeypatch.setenv("PIECE", "first")
    varied, _, _ = plan_cells(recipe, ["compare.grid={training.learning_rate: [0.5]}"], folder, ["full"])
    assert state.add(varied, ONE) == []


ONE = {"ranks": 1, "device": "cpu"}


def _finished(recipe: Path, folder: Path, methods: list[str]) -> ComparisonState:
    """A comparison whose cells have finished, without running them."""
    cells, _, base = plan_cells(recipe, [], folder, methods)
    state = ComparisonState("made", str(recipe), [], base.recipe.task.name, "f1", "validation")
    state.add(cells, ONE)
    for cell in state.cells:
        cell.status = "finished"
    return state


def test_one_command_at_a_time_runs_in_a_folder(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = workshop.write("busy", SHORT)
    with locked(workshop.output("busy")):
        assert main(["compare", str(recipe), "--methods", "head_only"]) == 2
        assert f"busy is in use by process {os.getpid()} on {socket.gethostname()}, " in capsys.readouterr().err
    assert not workshop.output("busy").exists()  # it was empty


def test_cells_that_failed_are_tried_again_last(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = workshop.write("order", SHORT)
    tried: list[str] = []

    def fail(loaded: Any, *_: Any) -> dict[str, Any]:
        tried.append(Path(loaded.recipe.output.dir).name)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "train", fail)
    assert main(["compare", str(recipe), "--methods", "lora"]) == 1
    assert main(["compare", str(recipe), "--methods", "lora,ia3"]) == 1
    assert tried == ["lora-seed42", "ia3-seed42", "lora-seed42"]


def test_messages_are_no_markup_and_passwords_are_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = "RuntimeError: [/pytorch/gloo/pair.cc:553] Connection closed, allowed [a, b]"
    made(tmp_path, [{"status": "failed", "error": error}])
    assert main(["report", str(tmp_path)]) == 0
    assert "[/pytorch/gloo/pair.cc:553] Connection closed, allowed [a, b]" in capsys.readouterr().out
    assert main(["report", "x", "--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_without_a_test_split_a_chosen_point_is_said_to_be_flattered(tmp_path: Path) -> None:
    cells = [
        {"grid": {"training.learning_rate": rate}, "summary": {"validation/f1": rate}, "curve": {3: rate}}
        for rate in (0.1, 0.2)
    ]
    assert "flatters" in as_markdown(build_report(read_results(made(tmp_path, cells))))


def test_a_report_of_what_is_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "no comparison can be read there" in capsys.readouterr().err
    assert main(["report", "unknown"]) == 2
    assert "--tracking-uri" in capsys.readouterr().err


def test_report_prints_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, [{"summary": summary(0.5, 0.4), "curve": {3: 0.5}}])
    for kind, file in (("md", "report.md"), ("csv", "report.csv"), ("json", "report.json")):
        assert main(["report", str(tmp_path), "--format", kind]) == 0
        assert (tmp_path / "report" / file).read_text().startswith(capsys.readouterr().out)


@pytest.mark.skipif(sys.platform != "linux", reason="a resident peak can be reset on Linux only")
def test_the_peak_of_one_cell_is_not_that_of_the_next() -> None:
    ballast = bytearray(300_000_000)
    high = peak_memory(ONE_RANK.device)["resident_peak_bytes"]
    del ballast
    reset_peak_memory(ONE_RANK.device)
    assert peak_memory(ONE_RANK.device)["resident_peak_bytes"] < high - 200_000_000
