"""Whose files an output folder holds, what a second start does there, and what a recipe brings along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_fixtures import TASKS, Workshop, summary_of

from sktune.cli import main
from sktune.comparison.results import load_state
from sktune.errors import UserError
from sktune.recipe import load_recipe, load_recipe_document
from sktune.recipe.document import FORMAT, FORMAT_KEY
from sktune.tracking.record import ArtifactEntry, Record

QUICK: dict[str, Any] = {
    "training": {"max_steps": 1, "warmup_steps": 0, "eval_steps": ...},
    "data": {"validation": None, "test": None},
}


def test_resuming_where_no_checkpoint_is_left_keeps_the_adapter(workshop: Workshop) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    output = workshop.output("run")
    before = (output / "adapter" / "adapter.safetensors").read_bytes()
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(UserError, match="holds a finished run and no checkpoint to go on from"):
        workshop.train("run", TASKS["sequence"], QUICK, overrides=("training.resume=auto",))
    assert (output / "adapter" / "adapter.safetensors").read_bytes() == before
    workshop.train("run", TASKS["sequence"], QUICK, overrides=("output.overwrite=true",))


def test_a_first_attempt_that_failed_refuses_no_second_one(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        workshop.train("run", TASKS["sequence"], QUICK, {"data": {"train": "absent.jsonl"}})
    workshop.train("run", TASKS["sequence"], QUICK)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_has_left_are_nobodys_to_replace(workshop: Workshop, overwrite: bool) -> None:
    folder = workshop.output("mine")
    own = ("recipe.yaml", "metrics.jsonl", "checkpoints/step-00000001/notes", "figures/mine.png")
    for name in own:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    with pytest.raises(UserError, match=r"holds recipe\.yaml, metrics\.jsonl, .*no mark of sktune's"):
        workshop.train("mine", TASKS["sequence"], QUICK, {"output": {"overwrite": overwrite}})
    assert {(folder / name).read_text() for name in own} == {"mine"}


def test_overwriting_takes_what_a_run_left_and_nothing_beside_it(workshop: Workshop) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    mine = [workshop.output("run") / name for name in ("adapter/notes.txt", "checkpoints/mine/x", "evaluation/plot.py")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    workshop.train("run", TASKS["sequence"], QUICK, {"output": {"overwrite": True}})
    assert all(path.read_text() == "mine" for path in mine)


def test_an_output_folder_that_is_a_file_is_blamed_on_its_name(workshop: Workshop) -> None:
    workshop.output("run").write_text("")
    for place in ("run", "run/inside"):
        with pytest.raises(UserError, match=r"output\.dir: .*run is a file"):
            workshop.train("x", QUICK, overrides=(f"output.dir={workshop.folder / place}",))


# -- saved recipes ----------------------------------------------------------------------------------------------


def test_a_saved_recipe_holds_every_field_and_the_formats_version(workshop: Workshop) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    file = workshop.output("run") / "adapter" / "recipe.yaml"
    saved = yaml.safe_load(file.read_text())
    assert saved.pop(FORMAT_KEY) == FORMAT
    assert saved == load_recipe(file).model_dump(mode="json", exclude={"compare"})
    # That a field stands there does not mean that somebody wanted it.
    assert load_recipe(file, ["data.text_pair_column=second"]).data.text_template == "{text}"
    file.write_text(file.read_text().replace(f"{FORMAT_KEY}: 1", f"{FORMAT_KEY}: 2"))
    with pytest.raises(UserError, match="is of a later sktune"):
        load_recipe(file)


def test_predicting_needs_no_variables_of_the_training(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_TRAINING", str(workshop.folder))
    tags = {"tracking": {"tags": {"who": "${OF_TRAINING}"}, "run_name": "${OF_TRAINING}"}}
    workshop.train("run", TASKS["sequence"], QUICK, tags)
    monkeypatch.delenv("OF_TRAINING")
    assert main(["predict", str(workshop.output("run")), "--text", "w1"]) == 0


def test_what_an_override_makes_idle_is_a_warning(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    recipe = workshop.write("run", TASKS["sequence"], {"data": {"max_test_samples": 2}})
    caplog.clear()
    load_recipe(recipe, ["data.test=null"])
    (said,) = caplog.messages
    assert "data.max_test_samples: does nothing: data.test is null" in said
    with pytest.raises(UserError, match="would do nothing"):  # asked for
        load_recipe(recipe, ["data.test=null", "data.max_test_samples=3"])
    alone = workshop.write("alone", TASKS["sequence"], {"data": {"max_test_samples": 2, "test": None}})
    with pytest.raises(UserError, match="would do nothing"):  # written so
        load_recipe(alone, ["training.seed=3"])
    above = workshop.folder / "above.yaml"
    above.write_text("extends: run.yaml\ndata: {test: null}\n")
    caplog.clear()
    load_recipe(above)
    assert len(caplog.messages) == 1


def test_a_comparison_trained_alone_is_not_refused_for_the_others(workshop: Workshop) -> None:
    recipe = workshop.write("run", {"compare": {"methods": {"lora": {"rank": -1}}}})
    assert load_recipe(recipe).method.name == "sk_prefix"
    with pytest.raises(UserError, match=r"compare\.methods\.lora\.rank"):
        load_recipe_document(recipe, comparing=True)


# -- metrics ----------------------------------------------------------------------------------------------------


def test_f1_of_the_positive_label_is_of_two_labels(workshop: Workshop) -> None:
    metric = {"training": {"metric_for_best_model": "positive_f1"}, "data": {"validation": "validation.jsonl"}}
    workshop.train("words", TASKS["words"], QUICK, metric)
    assert "validation/positive_f1" in summary_of(workshop.output("words"))
    three = workshop.folder / "three.jsonl"
    three.write_text("".join(json.dumps({"text": "w1", "label": label}) + "\n" for label in "abc"))
    data = {"data": {"train": str(three), "validation": str(three)}}
    with pytest.raises(UserError, match="there is no positive_f1 of 3 labels"):
        workshop.train("three", TASKS["sequence"], QUICK, metric, data)
    with pytest.raises(UserError, match="is not a metric of sequence_classification"):
        load_recipe(workshop.write("listed", TASKS["sequence"], metric, {"task": {"labels": ["a", "b", "c"]}}))


# -- records of others ------------------------------------------------------------------------------------------


def test_a_comparison_names_no_folder_outside_itself(tmp_path: Path) -> None:
    cell = {"name": "x", "label": "x", "method": "lora", "grid": {}, "seed": 1, "curves": "cells/x/metrics.jsonl"}
    content = {"name": "c", "recipe": "r", "overrides": [], "task": "t", "metric": "m", "select": "none"}
    for folder in ("../elsewhere", "/tmp", "cells/../..", "cells", ""):
        (tmp_path / "comparison.json").write_text(json.dumps({**content, "cells": [{**cell, "folder": folder}]}))
        with pytest.raises(UserError, match="is not in cells/"):
            load_state(tmp_path)


def test_a_record_uploads_no_file_outside_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sktune.tracking.store import MlflowRun

    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "kept").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    uri = f"sqlite:///{tmp_path}/m.db"
    record = Record.create(folder, "e", "r", uri)
    record.state.artifacts = [ArtifactEntry(name, None) for name in (str(tmp_path / "secret"), "../secret", "link")]
    record.add_artifact(folder / "kept", None)
    run = MlflowRun(uri, record)
    run.flush()
    assert [entry.path for entry in run._client.list_artifacts(record.run_id)] == ["kept"]
    assert sum("not in the run's folder" in line for line in caplog.messages) == 3
