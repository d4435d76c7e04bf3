"""The training loop in one process: its losses, rates and norms, its best checkpoint, and how it fails."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from tiny_models import tiny_backbone, tiny_tokenizer, tiny_tuned
from training_fixtures import (
    DIVERGING,
    EARLY,
    ONE_RANK,
    TASKS,
    Sections,
    Workshop,
    adapter,
    checkpoint_adapter,
    checkpoint_weights,
    largest_difference,
    points,
    scores_of,
    summary_of,
    tracked,
)

from sktune.cli import main
from sktune.data import Collator
from sktune.distributed.optimizer import build_optimizer, rate_factor, warmup_steps
from sktune.distributed.plain_engine import PlainEngine
from sktune.inference import evaluate_run
from sktune.methods.config import MethodConfig
from sktune.methods.full.config import FullFineTuningConfig
from sktune.methods.ia3.config import IA3Config
from sktune.methods.method import build_method
from sktune.methods.top_layers.config import TopLayersConfig
from sktune.model.tuned_model import TunedModel
from sktune.recipe import load_recipe
from sktune.sections import TrainingSection
from sktune.training.checkpoint import checkpoint_path, list_checkpoints
from sktune.training.steps import step_seed

STILL: Sections = {"training": {"learning_rate": 1e-30, "head_learning_rate": 1e-30, "weight_decay": 0.0}}
STILL_LM: Sections = {"training": {"learning_rate": 1e-30}}


def mlflow_run(database: Path) -> Any:
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


# -- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["token", "sequence", "pair", "regression", "generation"])
@pytest.mark.parametrize("micro", [1, 3, 22])
def test_the_training_loss_is_the_mean_over_all_labels_however_they_are_cut(
    workshop: Workshop, task: str, micro: int
) -> None:
    # One step over all 22 rows; 3 does not divide them, so the last micro batch is short or empty.
    sections = TASKS[task]
    accumulation = 8 if micro == 3 else 22 // micro
    train_file = sections.get("data", {}).get("train", "train.conll")
    shape: Sections = {
        "training": {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "per_device_eval_batch_size": 5,
            "max_steps": 1,
            "warmup_steps": 0,
            "eval_steps": 1,
        },
        "data": {"validation": train_file},
    }
    workshop.train("run", sections, STILL_LM if task == "generation" else STILL, shape)
    found = points(workshop.output("run"))
    assert found["train/loss", 1] == pytest.approx(found["validation/loss", 1], rel=1e-6)


@pytest.mark.parametrize("task", ["token", "sequence", "regression", "words", "generation"])
def test_evaluation_does_not_depend_on_the_batch_size(workshop: Workshop, task: str) -> None:
    for size in (1, 5, 64):
        # Batches of 1: the trial before the first step sees two candidates of perhaps two examples.
        workshop.train(f"run{size}", TASKS[task], {"training": {"per_device_eval_batch_size": size}})
    one, five, all_at_once = (scores_of(summary_of(workshop.output(f"run{size}"))) for size in (1, 5, 64))
    assert one == pytest.approx(five, rel=1e-5, abs=1e-6)
    assert one == pytest.approx(all_at_once, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_padding_side_changes_nothing(workshop: Workshop, side: str) -> None:
    workshop.train("right")
    workshop.train("other", {"data": {"padding_side": side}})
    assert points(workshop.output("other")) == pytest.approx(points(workshop.output("right")), rel=1e-4, abs=1e-5)


def test_the_same_recipe_gives_the_same_run(workshop: Workshop) -> None:
    for name in ("one", "two"):
        workshop.train(name, {"method": {"dropout": 0.3}})
    assert points(workshop.output("one")) == points(workshop.output("two"))
    workshop.train("three", {"method": {"dropout": 0.3}, "training": {"seed": 7}})
    assert points(workshop.output("one")) != points(workshop.output("three"))


def test_a_miniature_learns_its_task(workshop: Workshop) -> None:
    sections: Sections = {
        "model": {"name_or_path": "embedded:llama"},
        "method": {"text": "is this review good or bad ?", "rank": 16},
        "task": {"name": "sequence_classification"},
        "data": {
            **{split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            "path": "embedded:sentiment",
            "max_validation_samples": 150,
            "max_test_samples": 150,
            "max_length": 64,
        },
        "training": {"per_device_train_batch_size": 16, "max_steps": 60, "eval_steps": 60, "head_learning_rate": 5e-3,
                     "learning_rate": 5e-3, "warmup_steps": 6},
    }  # fmt: skip
    summary = workshop.train("run", sections)
    assert summary["test/accuracy"] > 0.75
    curve = points(workshop.output("run"), "train/loss")
    assert curve["train/loss", 60] < 0.8 * curve["train/loss", 1]


# -- rates and norms --------------------------------------------------------------------------------------------


def factors(total: int = 10, **fields: Any) -> list[float]:
    training = TrainingSection(**fields)
    return [rate_factor(training, step, total) for step in range(total)]


def test_schedules() -> None:
    assert factors(lr_scheduler_type="constant", warmup_steps=0) == [1.0] * 10
    assert factors(lr_scheduler_type="constant", warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert factors(lr_scheduler_type="linear", warmup_steps=2) == pytest.approx(
        [0.5, 1.0, *[1 - i / 8 for i in range(8)]]
    )
    cosine = factors(lr_scheduler_type="cosine", warmup_steps=2)
    assert cosine == pytest.approx([0.5, 1.0, *[0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]])
    assert rate_factor(TrainingSection(lr_scheduler_type="linear", warmup_steps=0), 10, 10) == 0.0


def test_warmup_ratio_is_a_share_of_all_steps() -> None:
    assert warmup_steps(TrainingSection(warmup_ratio=0.06), 100) == 6
    assert warmup_steps(TrainingSection(warmup_ratio=0.06), 10) == 1
    assert warmup_steps(TrainingSection(warmup_ratio=0.5, warmup_steps=3), 10) == 3
    assert factors(warmup_ratio=0.0) == pytest.approx([1 - i / 10 for i in range(10)])


def test_the_logged_rate_is_the_schedule(workshop: Workshop) -> None:
    workshop.train("run", {"training": {"learning_rate": 4e-3, "warmup_steps": 2}})
    logged = [value for _, value in sorted(points(workshop.output("run"), "train/learning_rate").items())]
    assert logged == pytest.approx([4e-3 * f for f in factors(8, warmup_steps=2)])


def test_adapter_and_head_have_rates_of_their_own(workshop: Workshop) -> None:
    def moved(name: str, **rates: float) -> tuple[float, float]:
        """Largest change of any adapter and any head weight by one step of Adam, which is the rate.

        By the second step, since the head's weights start at zero; of Adam without memory.
        """
        twice = {"max_steps": 2, "save_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant"}
        memory = {"adam_beta1": 0.0, "adam_beta2": 0.0, "max_grad_norm": None}
        workshop.train(name, {"training": {**twice, **memory, **rates}})
        before, after = (checkpoint_weights(workshop.output(name), step) for step in (1, 2))
        change = {key: float((after[key] - before[key]).abs().max()) for key in before}
        return (
            max(value for key, value in change.items() if not key.startswith("head.")),
            max(value for key, value in change.items() if key.startswith("head.")),
        )

    assert moved("both", learning_rate=1e-3, head_learning_rate=1e-1) == pytest.approx((1e-3, 1e-1), rel=1e-3)
    assert moved("slow-head", learning_rate=1e-2, head_learning_rate=1e-3) == pytest.approx((1e-2, 1e-3), rel=1e-3)


def test_the_head_takes_the_adapters_rate_where_it_has_none() -> None:
    tuned = tiny_tuned("sk_prefix", tiny_backbone("llama"))
    groups = build_optimizer(tuned.trainable_parameters(), TrainingSection(learning_rate=3e-3)).param_groups
    assert {group["lr"] for group in groups} == {3e-3}
    assert sum(len(group["params"]) for group in groups) == len(tuned.trainable_parameters())


def test_biases_are_not_decayed() -> None:
    tuned = tiny_tuned("sk_prompt", tiny_backbone("llama"))
    training = TrainingSection(weight_decay=0.1, head_learning_rate=1e-1, adam_beta1=0.8, adam_epsilon=1e-6)
    optimizer = build_optimizer(tuned.trainable_parameters(), training)
    names = {id(p): name for name, p in tuned.trainable_parameters().items()}
    seen: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.999)
        assert group["eps"] == 1e-6
        seen |= {names[id(p)]: (group["peak_lr"], group["weight_decay"]) for p in group["params"]}
    assert set(seen) == set(tuned.trainable_parameters())
    for name, (rate, decay) in seen.items():
        assert rate == (1e-1 if name.startswith("head.") else 3e-3)
        assert decay == (0.0 if name.endswith("bias") else 0.1)


@pytest.mark.parametrize(
    ("network", "config", "spared"),
    [
        ("llama", IA3Config(), "ia3"),
        ("llama", FullFineTuningConfig(), "norm"),
        ("bert", TopLayersConfig(layers=1), "Norm"),
    ],
)
def test_what_multiplies_and_starts_at_one_is_not_decayed(network: str, config: MethodConfig, spared: str) -> None:
    backbone = tiny_backbone(network)
    tuned = TunedModel(backbone, build_method(config, backbone, tiny_tokenizer()), None)
    names = {id(p): name for name, p in tuned.trainable_parameters().items()}
    optimizer = build_optimizer(tuned.trainable_parameters(), TrainingSection(weight_decay=0.1))
    decays = {names[id(p)]: group["weight_decay"] > 0 for group in optimizer.param_groups for p in group["params"]}
    assert any(spared in name for name in decays)
    for name, decayed in decays.items():
        assert decayed == (spared not in name and not name.endswith("bias")), name


@pytest.mark.parametrize(("limit", "expected"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_the_gradient_is_clipped_to_max_grad_norm(limit: float | None, expected: float) -> None:
    tuned = tiny_tuned("sk_prompt", tiny_backbone("llama"))
    parameters = tuned.trainable_parameters()
    sgd = torch.optim.SGD(parameters.values(), lr=1.0)
    engine = PlainEngine(tuned, sgd, limit, ONE_RANK)
    before = engine.weights()
    size = math.sqrt(sum(p.numel() for p in parameters.values()))
    engine.backward(torch.stack([(p * 5.0 / size).sum() for p in parameters.values()]).sum())
    assert engine.step() == pytest.approx(5.0, rel=1e-4)  # the norm before clipping
    after = engine.weights()
    length = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert length == pytest.approx(expected, rel=1e-3)


def test_a_run_without_clipping(workshop: Workshop) -> None:
    workshop.train("clipped", {"training": {"max_grad_norm": 1e-3}})
    workshop.train("free", {"training": {"max_grad_norm": None}})
    workshop.train("high", {"training": {"max_grad_norm": 1e6}})
    assert points(workshop.output("free")) == points(workshop.output("high"))
    clipped, free = points(workshop.output("clipped")), points(workshop.output("free"))
    assert clipped["train/gradient_norm", 1] == pytest.approx(free["train/gradient_norm", 1])
    assert clipped["train/loss", 8] != pytest.approx(free["train/loss", 8], rel=1e-3)


def test_epochs_become_steps(workshop: Workshop) -> None:
    # 22 rows in batches of 4 are 6 steps an epoch, the last one of 2 rows.
    changes: Sections = {"training": {"max_steps": ..., "num_train_epochs": 1.5, "eval_steps": ...}}
    summary = workshop.train("run", changes)
    assert summary["steps"] == 9
    evaluated = sorted(step for _, step in points(workshop.output("run"), "validation/loss"))
    assert evaluated == [6, 9]  # at the epoch's end, and at the run's


def test_zero_steps_score_the_hard_prompt(workshop: Workshop) -> None:
    # The adapter starts as the identity, so its kind and rank make no difference before the first update.
    nothing: Sections = {"training": {"max_steps": 0, "warmup_steps": ..., "eval_steps": 1}}
    one = workshop.train("one", TASKS["words"], nothing)
    other = workshop.train("other", TASKS["words"], nothing, {"method": {"adapter": "linear", "rank": ...}})
    assert (one["steps"], one["best_step"]) == (0, 0)
    assert one["validation/loss"] == pytest.approx(other["validation/loss"], rel=1e-6)
    assert ("validation/loss", 0) in points(workshop.output("one"))


# -- the best checkpoint ----------------------------------------------------------------------------------------


def test_early_stopping_leaves_the_best_weights(workshop: Workshop) -> None:
    summary = workshop.train("run", EARLY)
    output = workshop.output("run")
    assert (summary["steps"], summary["best_step"]) == (6, 2)
    assert largest_difference(adapter(output), checkpoint_adapter(output, 2)) == 0.0
    assert largest_difference(adapter(output), checkpoint_adapter(output, 6)) > 1e-3
    assert summary["validation/f1"] == points(output)["validation/f1", 2]


@pytest.mark.parametrize("metric", ["loss", "f1", "recall"])
def test_the_best_step_is_the_best_by_the_chosen_metric(workshop: Workshop, metric: str) -> None:
    summary = workshop.train("run", {"training": {"metric_for_best_model": metric, "eval_steps": 1, "max_steps": 6}})
    curve = {step: value for (_, step), value in points(workshop.output("run"), f"validation/{metric}").items()}
    best = min(curve.values()) if metric == "loss" else max(curve.values())
    assert summary["best_step"] == min(step for step, value in curve.items() if value == best)
    assert summary[f"validation/{metric}"] == best


def test_without_validation_the_last_weights_are_kept(workshop: Workshop) -> None:
    summary = workshop.train("run", {"data": {"validation": None}, "training": {"eval_steps": ...}})
    output = workshop.output("run")
    assert summary["best_step"] is None
    assert largest_difference(adapter(output), checkpoint_adapter(output, 8)) == 0.0
    assert "test/f1" in summary


def test_what_a_run_leaves_behind(workshop: Workshop) -> None:
    summary = workshop.train("run", TASKS["sequence"])
    output = workshop.output("run")
    assert summary_of(output) == json.loads(json.dumps(summary))
    card = json.loads((output / "adapter" / "adapter.json").read_text())
    assert card["labels"] == ["people", "places"]
    assert card["trainable_parameters"] == summary["trainable_parameters"]
    assert card["metrics"] == scores_of(summary)
    assert load_recipe(output / "adapter" / "recipe.yaml") == load_recipe(output / "recipe.yaml")
    records = [json.loads(line) for line in (output / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(13))
    right = sum(record["prediction"] == record["reference"] for record in records)
    assert right / 13 == pytest.approx(summary["test/accuracy"])
    assert (output / "figures" / "test_confusion.png").stat().st_size > 1000


# -- failing ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_the_update(workshop: Workshop, tmp_path: Path) -> None:
    workshop.train("run", {"training": {"lr_scheduler_type": "constant"}})
    good = {file.name: file.read_bytes() for file in checkpoint_path(workshop.output("run"), 8).iterdir()}
    changes: Sections = {
        **DIVERGING,
        "training": {**DIVERGING["training"], "save_steps": 8, "max_steps": 16, "eval_steps": 8, "resume": "auto",
                     "lr_scheduler_type": "constant"},
    }  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) at step 10, before its update"):
        workshop.train("run", changes)
    assert list_checkpoints(workshop.output("run")) == [4, 8]
    found = {file.name: file.read_bytes() for file in checkpoint_path(workshop.output("run"), 8).iterdir()}
    assert found == good


def test_a_failing_run_is_failed_in_mlflow(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        workshop.train("run", DIVERGING, tracked(tmp_path / "mlflow.db"))
    run = mlflow_run(tmp_path / "mlflow.db")
    assert run.info.status == "FAILED"
    assert "the loss became" in run.data.tags["error"]
    assert run.info.end_time is not None
    assert not (workshop.output("run") / "adapter").exists()
    assert not (workshop.output("run") / "summary.json").exists()


def test_broken_backbone_weights_stop_at_the_first_step(workshop: Workshop, model_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match="the loss became nan at step 1, before its update"):
        workshop.train("run", {"model": {"name_or_path": str(broken)}})
    assert list_checkpoints(workshop.output("run")) == []


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    # Targets of 1e9, not all alike, give a finite fp32 loss whose gradient overflows in the float16 backbone.
    data = tmp_path / "huge.jsonl"
    rows = [{"text": f"w{i} w{i + 1}", "score": 1e9 * (-1) ** i} for i in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: Sections = {
        "model": {"dtype": "float16"},
        "data": {"path": str(tmp_path), "train": data.name, "validation": None, "test": None},
        "training": {"save_steps": 1, "eval_steps": ..., "max_steps": 3},
    }
    with pytest.raises(FloatingPointError, match=r"gradient|loss"):
        workshop.train("run", TASKS["regression"], changes)
    for step in list_checkpoints(workshop.output("run")):
        assert all(tensor.isfinite().all() for tensor in checkpoint_weights(workshop.output("run"), step).values())


def test_a_finished_run_is_finished_in_mlflow(workshop: Workshop, tmp_path: Path) -> None:
    summary = workshop.train("run", tracked(tmp_path / "mlflow.db"))
    run = mlflow_run(tmp_path / "mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.data.params["method.rank"] == "4"
    assert run.data.metrics["final/test/f1"] == pytest.approx(summary["test/f1"])
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    sent = {("train/loss", point.step): point.value for point in curve}
    assert sent == points(workshop.output("run"), "train/loss")
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"adapter", "predictions", "recipe.yaml"} <= artifacts


def test_positions_are_checked_before_training(workshop: Workshop) -> None:
    message = r"data\.max_length: 5000 tokens after a prompt text of \d+ exceed the \d+ positions"
    with pytest.raises(ValueError, match=message):
        workshop.train("run", {"data": {"max_length": 5000}})


def test_an_adapter_does_not_fit_another_recipe(workshop: Workshop) -> None:
    workshop.train("run")
    with pytest.raises(ValueError, match=r"do not fit this recipe: .* use the recipe it was trained with"):
        evaluate_run(workshop.output("run"), "test", ONE_RANK, ["method.rank=8"])


def test_mlflow_knows_the_data_the_purpose_and_the_memory_of_a_run(workshop: Workshop, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    recipe = workshop.write("run", TASKS["sequence"], tracked(database), {"training": {"logging_steps": 4}})
    recipe.write_text("# People or places.\n#\n# Two classes.\n\n" + recipe.read_text(), encoding="utf-8")
    assert main(["train", str(recipe)]) == 0
    run = mlflow_run(database)
    assert run.data.tags["mlflow.note.content"] == "People or places.\n\nTwo classes."
    read = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert read.keys() == {"training", "validation", "test"}
    assert [json.loads(dataset.profile)["num_rows"] for dataset in read.values()] == [22, 17, 13]
    assert read["test"].name.endswith("/test.jsonl")
    assert Path(json.loads(read["training"].source)["uri"]).is_file()
    assert len({dataset.digest for dataset in read.values()}) == 3
    client = MlflowClient(f"sqlite:///{database}")
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    used = client.get_metric_history(run.info.run_id, "memory/resident_bytes")
    assert [point.step for point in used] == [1, 4, 8]
    assert all(point.value > 1e8 for point in used)


def test_random_numbers_of_steps_and_ranks_differ_and_stay() -> None:
    seeds = {(seed, step, rank): step_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}
    assert len(set(seeds.values())) == len(seeds)
    assert seeds[0, 0, 0] == 5842066033578894005


def test_the_time_of_waiting_for_data_counts_in_tokens_per_second(workshop: Workshop) -> None:
    slow, plain = Collator.__call__, workshop.train("plain", {"training": {"max_steps": 8}})

    def slowly(self: Collator, rows: Any) -> Any:
        time.sleep(0.3)
        return slow(self, rows)

    with mock.patch.object(Collator, "__call__", slowly):
        waited = workshop.train("waited", {"training": {"max_steps": 8}})
    assert waited["speed/data_wait_share"] > 0.5 > plain["speed/data_wait_share"] > 0
    assert waited["speed/real_tokens_per_second"] < plain["speed/real_tokens_per_second"]
