"""Interrupted runs: killed and resumed equals uninterrupted, and what cannot be resumed says why."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from training_fixtures import (
    BASELINES,
    BITS,
    EARLY,
    LONG,
    ROOT,
    STAGES,
    TASKS,
    TWO_BY_TWO,
    USER_STAGES,
    Sections,
    SeveralRanks,
    Start,
    Workshop,
    adapter,
    assert_close_run,
    assert_same_run,
    checkpoint_adapter,
    cut_back,
    deepspeed_command,
    largest_difference,
    points,
    scores_of,
    stage_name,
    summary_of,
    torchrun_command,
    tracked,
)

from sktune.errors import UserError
from sktune.training.checkpoint import checkpoint_path, list_checkpoints

RESUME: Sections = {"training": {"resume": "auto"}}

# -- equal to the uninterrupted run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [*({"quantization": fields} for fields in BITS.values()), TASKS["regression"], TASKS["words"]],
    ids=[*BITS, "regression", "words"],
)
def test_resumed_equals_uninterrupted(workshop: Workshop, sections: Sections) -> None:
    workshop.train("whole", sections)
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    workshop.train("parts", sections, RESUME)
    assert_same_run(workshop.output("whole"), workshop.output("parts"))


def test_dropout_weight_decay_and_length_groups_resume_too(workshop: Workshop) -> None:
    sections: Sections = {
        "method": {"name": "sk_prompt", "dropout": 0.3},
        "task": {"head_dropout": 0.2},
        "training": {
            "weight_decay": 0.1,
            "lr_scheduler_type": "cosine",
            "gradient_accumulation_steps": 2,
            "max_steps": 7,
        },
        "data": {"group_by_length": True},
    }
    workshop.train("whole", sections)
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    workshop.train("parts", sections, RESUME)
    assert_same_run(workshop.output("whole"), workshop.output("parts"))


def test_a_checkpoint_between_two_log_lines_changes_no_line(workshop: Workshop) -> None:
    sections: Sections = {"training": {"logging_steps": 3, "save_steps": 4}}
    workshop.train("whole", sections)
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    workshop.train("parts", sections, RESUME)
    assert points(workshop.output("parts")) == pytest.approx(points(workshop.output("whole")))


def test_resuming_a_finished_run_trains_nothing_more(workshop: Workshop) -> None:
    first = workshop.train("run")
    before = adapter(workshop.output("run"))
    again = workshop.train("run", RESUME)
    assert scores_of(again) == scores_of(first)
    assert again["steps"] == 8
    assert largest_difference(before, adapter(workshop.output("run"))) == 0.0


def test_a_run_that_stopped_early_stays_stopped(workshop: Workshop) -> None:
    first = workshop.train("run", EARLY)
    assert first["steps"] == 6
    again = workshop.train("run", EARLY, RESUME)
    assert again["steps"] == 6
    assert scores_of(again) == scores_of(first)


def test_resume_in_an_empty_folder_starts_anew(workshop: Workshop) -> None:
    plain = workshop.train("plain")
    assert scores_of(workshop.train("resumed", RESUME)) == scores_of(plain)


def test_a_resumed_run_may_be_made_longer(workshop: Workshop) -> None:
    constant: Sections = {"training": {"lr_scheduler_type": "constant", "max_steps": 4}}
    workshop.train("whole", constant, {"training": {"max_steps": 8}})
    workshop.train("parts", constant)
    workshop.train("parts", constant, {"training": {"max_steps": 8}}, RESUME)
    assert points(workshop.output("parts")) == points(workshop.output("whole"))
    assert largest_difference(adapter(workshop.output("parts")), adapter(workshop.output("whole"))) == 0.0


# -- on other numbers of ranks ----------------------------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("bits", "stage"), [("none", stage) for stage in STAGES] + [("int8", "zero3"), ("nf4", "zero3")]
)
def test_resumed_equals_uninterrupted_on_two_ranks(two_ranks: SeveralRanks, bits: str, stage: str | None) -> None:
    name = f"two-{stage_name(stage)}-{bits}"
    assert_same_run(two_ranks.output(name), two_ranks.output(f"{name}-resumed"))


@pytest.mark.distributed
@pytest.mark.parametrize("method", [name for name in BASELINES if name != "in_context"])
def test_every_method_is_resumed_under_zero3(two_ranks: SeveralRanks, method: str) -> None:
    assert_same_run(two_ranks.output(f"two-zero3-{method}"), two_ranks.output(f"resumed-{method}"))


@pytest.mark.distributed
@pytest.mark.parametrize("stage", USER_STAGES)
def test_resumed_equals_uninterrupted_with_a_users_deepspeed_file(two_ranks: SeveralRanks, stage: int) -> None:
    assert_same_run(two_ranks.output(f"user{stage}"), two_ranks.output(f"user{stage}-resumed"))


@pytest.mark.distributed
@pytest.mark.parametrize("bits", BITS)
def test_resumed_from_one_rank_on_two(two_ranks: SeveralRanks, bits: str) -> None:
    grown = two_ranks.output(f"grown-{bits}")
    assert_close_run(two_ranks.output(f"one-4x1-{bits}"), grown)
    assert json.loads((checkpoint_path(grown, 4) / "progress.json").read_text())["world_size"] == 1
    assert json.loads((checkpoint_path(grown, 8) / "progress.json").read_text())["world_size"] == 2


@pytest.mark.distributed
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stage", ["zero3", "zero2"])
def test_resumed_from_two_ranks_on_one(two_ranks: SeveralRanks, workshop: Workshop, bits: str, stage: str) -> None:
    whole = two_ranks.output(f"two-{stage}-{bits}")
    cut_back(whole, 4, workshop.output("shrunk"))
    # Recipes are compared, so the data must be the same files.
    recipe = yaml.safe_load((whole / "recipe.yaml").read_text())
    base = {name: {key: recipe[name][key] for key in workshop.base[name]} for name in ("model", "data")}
    workshop.train("shrunk", base, {"quantization": BITS[bits]}, RESUME)
    assert_close_run(whole, workshop.output("shrunk"))


# -- a real kill ------------------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_killed_under_deepspeed_and_resumed_under_torchrun(
    two_ranks: SeveralRanks, workshop: Workshop, tmp_path: Path, start: Start
) -> None:
    database = tmp_path / "mlflow.db"
    output = workshop.output("killed")
    recipe = workshop.write("killed", LONG, TWO_BY_TWO, tracked(database))
    script = ROOT / "launchers" / "train.py"
    first = start(deepspeed_command(script, "--recipe", recipe))
    first.wait_for(checkpoint_path(output, 10))
    first.kill()
    assert not (output / "summary.json").exists()
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (before,) = client.search_runs([experiment.experiment_id])
    assert before.info.status == "RUNNING"

    second = start(torchrun_command(script, "--recipe", recipe, "--resume"))
    assert second.wait(150) == 0, second.output()[-3000:]
    assert "resuming from" in second.output()
    assert_same_run(two_ranks.output("two-long"), output)

    (after,) = client.search_runs([experiment.experiment_id])
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert after.data.params["training.resume"] == before.data.params["training.resume"] == "never"
    assert before.data.params.items() <= after.data.params.items()
    curve = client.get_metric_history(after.info.run_id, "train/loss")
    assert [point.step for point in curve] == [1, *range(5, 41, 5)]
    assert {point.step: point.value for point in curve} == {
        step: value for (_, step), value in points(output, "train/loss").items()
    }


def test_killed_and_resumed_in_one_process_without_a_launcher(workshop: Workshop, start: Start) -> None:
    workshop.train("whole", LONG, {"training": {"max_steps": 200}})
    output = workshop.output("killed")
    recipe = workshop.write("killed", LONG, {"training": {"max_steps": 200}})
    command = [sys.executable, str(ROOT / "launchers" / "train.py"), "--recipe", str(recipe)]
    first = start(command)
    first.wait_for(checkpoint_path(output, 10))
    first.kill()
    assert not (output / "summary.json").exists()
    assert list_checkpoints(output)[-1] < 200
    second = start([*command, "--resume"])
    assert second.wait(120) == 0, second.output()[-3000:]
    assert_same_run(workshop.output("whole"), output)


def test_a_terminated_run_is_not_left_running_in_mlflow(workshop: Workshop, tmp_path: Path, start: Start) -> None:
    # What a job scheduler does at the end of the time, and a launcher when another rank has died.
    database = tmp_path / "mlflow.db"
    recipe = workshop.write("run", LONG, {"training": {"max_steps": 1_000_000}}, tracked(database))
    running = start([sys.executable, str(ROOT / "launchers" / "train.py"), "--recipe", str(recipe)])
    running.wait_for(checkpoint_path(workshop.output("run"), 5))
    running.process.terminate()
    assert running.wait(30) != 0
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"


# -- checkpoints ------------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_and_the_best_are_kept(workshop: Workshop) -> None:
    sections: Sections = {
        "training": {
            "save_total_limit": 2,
            "eval_steps": 1,
            "early_stopping_patience": 99,
            "early_stopping_threshold": 2.0,  # the first evaluation stays the best
        }
    }
    summary = workshop.train("run", sections)
    assert summary["best_step"] == 1
    assert list_checkpoints(workshop.output("run")) == [1, 7, 8]


def test_save_steps_and_evaluation_are_independent(workshop: Workshop) -> None:
    workshop.train("run", {"training": {"save_steps": 3, "metric_for_best_model": "loss"}})
    kept = list_checkpoints(workshop.output("run"))
    assert {3, 6, 8} <= set(kept)  # its own, and the end
    assert set(kept) <= {3, 4, 6, 8}


def test_without_validation_every_epoch_leaves_a_checkpoint(workshop: Workshop) -> None:
    blind: Sections = {"data": {"validation": None, "max_train_samples": 12}, "training": {"eval_steps": ...}}
    workshop.train("blind", blind)  # 3 steps an epoch, 8 in all
    assert list_checkpoints(workshop.output("blind")) == [3, 6, 8]


def test_an_unfinished_checkpoint_is_ignored(workshop: Workshop) -> None:
    workshop.train("whole")
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    unfinished = checkpoint_path(workshop.output("parts"), 6)
    unfinished = unfinished.with_name(unfinished.name + ".writing")
    unfinished.mkdir()
    (unfinished / "adapter.safetensors").write_bytes(b"half of")
    workshop.train("parts", RESUME)
    assert_same_run(workshop.output("whole"), workshop.output("parts"))


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_newest_checkpoint_is_named(workshop: Workshop, file: str, damage: str) -> None:
    workshop.train("run")
    damaged = checkpoint_path(workshop.output("run"), 8)
    content = (damaged / file).read_bytes()
    (damaged / file).unlink()
    if damage == "truncated":
        (damaged / file).write_bytes(content[: len(content) // 2])
    message = r"step-00000008: damaged checkpoint .*remove the folder to resume from an older"
    with pytest.raises(ValueError, match=message):
        workshop.train("run", RESUME)
    shutil.rmtree(damaged)
    assert workshop.train("run", RESUME)["steps"] == 8  # from step 4


def test_a_checkpoint_holds_no_backbone(workshop: Workshop) -> None:
    summary = workshop.train("run")
    weights = checkpoint_adapter(workshop.output("run"), 8)
    assert not any(name.startswith("backbone") for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == summary["trainable_parameters"]
    folder = checkpoint_path(workshop.output("run"), 8)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3 * 4 * summary["trainable_parameters"] + 10_000


# -- the output folder ------------------------------------------------------------------------------------------


def test_a_used_folder_is_refused_with_the_three_ways_out(workshop: Workshop) -> None:
    workshop.train("run")
    with pytest.raises(ValueError, match=r"already holds a run") as caught:
        workshop.train("run")
    assert all(way in str(caught.value) for way in ("--resume", "output.overwrite=true", "another folder"))


def test_overwrite_leaves_nothing_of_the_old_run(workshop: Workshop) -> None:
    workshop.train("run")
    (workshop.output("run") / "notes.txt").write_text("the user's own")
    workshop.train("run", {"training": {"max_steps": 2, "eval_steps": 2}, "output": {"overwrite": True}})
    output = workshop.output("run")
    assert list_checkpoints(output) == [2]
    assert summary_of(output)["steps"] == 2
    assert {step for _, step in points(output)} == {1, 2}
    assert (output / "notes.txt").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": {"rank": 8}}, "method.rank was 4 and is 8"),
        ({"method": {"name": "sk_prompt"}}, "method.name was 'sk_prefix' and is 'sk_prompt'"),
        ({"quantization": {"load_in_4bit": True}}, "quantization.load_in_4bit was False and is True"),
        ({"data": {"max_train_samples": 9}}, "data.max_train_samples"),
        ({"training": {"seed": 1}}, "training.seed was 42 and is 1"),
    ],
)
def test_another_run_is_not_resumed(workshop: Workshop, change: dict[str, Any], field: str) -> None:
    workshop.train("run")
    before = (workshop.output("run") / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match=r"training.resume: the run in .* was another one") as caught:
        workshop.train("run", RESUME, change)
    assert field in str(caught.value)
    assert (workshop.output("run") / "recipe.yaml").read_text() == before


def test_a_changed_rate_is_resumed_with_a_warning(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    workshop.train("whole")
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    with caplog.at_level(logging.WARNING, "sktune"):
        workshop.train("parts", RESUME, {"training": {"learning_rate": 1e-3}})
    assert "training.learning_rate: was 0.02, is 0.001" in caplog.text
    assert points(workshop.output("parts"))["train/learning_rate", 5] == pytest.approx(1e-3 * (1 - 2 / 6))


def test_another_global_batch_is_resumed_with_a_warning(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    workshop.train("whole")
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    with caplog.at_level(logging.WARNING, "sktune"):
        workshop.train("parts", RESUME, {"training": {"per_device_train_batch_size": 8}})
    assert "a global batch of 8 instead of 4" in caplog.text
    assert summary_of(workshop.output("parts"))["steps"] == 8


# -- what a checkpoint had read ------------------------------------------------------------------------------------


def _half_way(workshop: Workshop, tmp_path: Path) -> tuple[Path, Sections]:
    """A run of four of eight steps on a copy of the data; the folder of the copy, and what it is trained with."""
    data = tmp_path / "copied"
    shutil.copytree(workshop.base["data"]["path"], data)
    changes: Sections = {**TASKS["sequence"], "data": {**TASKS["sequence"]["data"], "path": str(data)}}
    workshop.train("run", changes, {"training": {"max_steps": 4}})
    return data, changes


def test_resuming_over_other_rows_is_said(workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, changes = _half_way(workshop, tmp_path)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[: len(lines) - 4]))
    with caplog.at_level(logging.WARNING):
        workshop.train("run", changes, RESUME)
    assert "data.train: the texts, their labels or their tokens are not those that" in caplog.text
    assert "data.validation" not in caplog.text


def test_resuming_over_the_same_rows_says_nothing(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, changes = _half_way(workshop, tmp_path)
    with caplog.at_level(logging.WARNING):
        workshop.train("run", changes, RESUME, {"training": {"per_device_eval_batch_size": 2}})
    assert "are not those that" not in caplog.text


def test_resuming_with_other_labels_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    data, changes = _half_way(workshop, tmp_path)
    for file in data.glob("*.jsonl"):
        file.write_text(file.read_text().replace('"people"', '"persons"'))
    with pytest.raises(
        ValueError, match=r"training\.resume: .*step-00000004 was trained with something else: the labels"
    ):
        workshop.train("run", changes, RESUME)


def test_resuming_with_another_model_of_the_same_shapes_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(workshop.base["model"]["name_or_path"], model)
    changes: Sections = {"model": {"name_or_path": str(model)}}
    workshop.train("run", changes, {"training": {"max_steps": 4}})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(ValueError, match=r"training\.resume: .*the model's configuration changed since"):
        workshop.train("run", changes, RESUME)


def test_resuming_with_other_weights_in_the_same_place_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(workshop.base["model"]["name_or_path"], model)
    changes: Sections = {"model": {"name_or_path": str(model)}}
    workshop.train("run", changes, {"training": {"max_steps": 4}})
    file, copy = model / "model.safetensors", tmp_path / "copy.safetensors"
    weights = load_file(file)
    shutil.copy(file, copy)
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"training\.resume: .*the model's weights, under the same name, changed since"):
        workshop.train("run", changes, RESUME)
    shutil.copy(copy, file)  # another file with the same content
    assert workshop.train("run", changes, RESUME)["steps"] == 8
