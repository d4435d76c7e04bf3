"""Two real processes under DeepSpeed: the same run as one process, whatever is sharded and however it is cut."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch
from training_fixtures import (
    BITS,
    LONG,
    ONE_RANK,
    ROOT,
    STAGES,
    TWO_BY_TWO,
    USER_STAGES,
    VARIANTS,
    SeveralRanks,
    Start,
    Workshop,
    adapter,
    assert_close_run,
    checkpoint_adapter,
    checkpoint_weights,
    deepspeed_command,
    largest_difference,
    points,
    scores_of,
    stage_name,
    summary_of,
    tracked,
)

import sktune
from sktune.inference import evaluate_run
from sktune.training.checkpoint import checkpoint_path, list_checkpoints

pytestmark = pytest.mark.distributed

BF16 = 2e-3
"""How far runs in bf16 may part: a sum in another order can round a refined key the other way, by one part in 256."""

# -- one trajectory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["one-1x4", "two-zero3", "two-1x2"])
@pytest.mark.parametrize("bits", BITS)
def test_batches_of_4x1_1x4_2x2_and_2x1x2_give_one_trajectory(two_ranks: SeveralRanks, bits: str, cut: str) -> None:
    assert_close_run(two_ranks.output(f"one-4x1-{bits}"), two_ranks.output(f"{cut}-{bits}"))


@pytest.mark.parametrize("bits", BITS)
def test_the_heads_centre_is_of_the_global_batch_however_it_is_cut(two_ranks: SeveralRanks, bits: str) -> None:
    def centre(name: str) -> torch.Tensor:
        return checkpoint_weights(two_ranks.output(f"{name}-{bits}"), 8)["head.centre"]

    alone = centre("one-4x1")
    assert alone.abs().max() > 0.1
    for name in ("one-1x4", "two-1x2", "two-replicas", "two-zero3", "two-zero2", "two-zero3_offload", "grown"):
        torch.testing.assert_close(centre(name), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stage", STAGES[:-1])
def test_every_stage_equals_no_sharding(two_ranks: SeveralRanks, bits: str, stage: str) -> None:
    assert_close_run(two_ranks.output(f"two-replicas-{bits}"), two_ranks.output(f"two-{stage_name(stage)}-{bits}"))


@torch.no_grad()
def test_python_loads_what_two_ranks_have_trained_in_shares(two_ranks: SeveralRanks) -> None:
    ids = torch.tensor([[5, 9, 30, 31]])
    alone, shares = (sktune.load(two_ranks.output(name)) for name in ("one-4x1-none", "two-zero3-none"))
    torch.testing.assert_close(shares(ids).logits, alone(ids).logits, atol=1e-3, rtol=1e-3)
    assert shares.belongs_to == alone.belongs_to


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero3_equals_no_sharding_whatever_else_is_chosen(two_ranks: SeveralRanks, variant: str) -> None:
    replicas, shards = two_ranks.output(f"two-replicas-{variant}"), two_ranks.output(f"two-zero3-{variant}")
    assert_close_run(replicas, shards, BF16 if "bf16" in variant else 1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_one_two_and_three_ranks_give_one_trajectory(
    two_ranks: SeveralRanks, three_ranks: SeveralRanks, bits: str
) -> None:
    """Three divide neither the rows of a split nor the bytes of a packed weight."""
    alone = two_ranks.output(f"one-six-{bits}")
    assert_close_run(alone, two_ranks.output(f"two-six-{bits}"))
    assert_close_run(alone, three_ranks.output(f"three-{bits}"))
    for rank in range(3):
        share = three_ranks.result(f"three-{bits}")[f"memory/rank{rank}/frozen_bytes"]
        assert share < 0.5 * summary_of(alone)["memory/frozen_bytes"]


@pytest.mark.parametrize("choice", ["false", "auto"])
def test_unshared_backbones_are_whole_and_train_the_same(two_ranks: SeveralRanks, choice: str) -> None:
    name = f"two-shards-{choice}"
    assert_close_run(two_ranks.output("two-replicas-bf16-4bit"), two_ranks.output(name), BF16)
    whole = two_ranks.result("two-replicas-bf16-4bit")["memory/frozen_bytes"]
    assert two_ranks.result(name)["memory/frozen_bytes"] == whole  # small enough for auto, too
    config = json.loads((two_ranks.output(name) / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize("stage", USER_STAGES)
def test_a_users_deepspeed_file_equals_no_sharding(two_ranks: SeveralRanks, stage: int) -> None:
    assert_close_run(two_ranks.output("two-replicas-none"), two_ranks.output(f"user{stage}"))


def test_zero3_without_clipping_equals_one_process(two_ranks: SeveralRanks) -> None:
    assert_close_run(two_ranks.output("one-unclipped"), two_ranks.output("two-unclipped"))
    clipped, free = points(two_ranks.output("two-zero3-none")), points(two_ranks.output("two-unclipped"))
    assert max(clipped["train/gradient_norm", step] for step in range(1, 9)) > 1  # there was something to clip
    assert clipped["train/loss", 8] != free["train/loss", 8]


def test_the_runs_that_are_compared_learn_something(two_ranks: SeveralRanks) -> None:
    for bits in BITS:
        curve = points(two_ranks.output(f"two-zero3-{bits}"))
        assert curve["train/loss", 8] < 0.6 * math.log(5)  # of five labels, each as probable
        assert curve["validation/f1", 8] > 0.2
        assert all(norm > 0 for (name, _), norm in curve.items() if name == "train/gradient_norm")


@pytest.mark.parametrize("bits", BITS)
def test_zero3_halves_what_a_rank_holds_of_the_backbone(two_ranks: SeveralRanks, bits: str) -> None:
    whole = two_ranks.result(f"two-replicas-{bits}")["memory/frozen_bytes"]
    for rank in range(2):
        share = two_ranks.result(f"two-zero3-{bits}")[f"memory/rank{rank}/frozen_bytes"]
        assert share < 0.65 * whole  # norms and scales stay on every rank


@pytest.mark.parametrize("bits", BITS)
def test_outside_of_a_pass_nothing_of_the_frozen_model_is_gathered(two_ranks: SeveralRanks, bits: str) -> None:
    for rank in range(2):
        gathered = two_ranks.results[rank][f"watched-{bits}"]["result"]["gathered"]
        assert len(gathered) == 8  # an evaluation lies before the first step, and one after the fourth
        assert gathered == [[0, 0]] * 8
        assert two_ranks.results[rank][f"watched-{bits}"]["result"]["gathered_by_step_zero"] == [0]


def test_the_deepspeed_configuration_is_kept_beside_the_results(two_ranks: SeveralRanks) -> None:
    for stage, number in (("zero3", 3), ("zero2", 2), ("zero3_offload", 3)):
        config = json.loads((two_ranks.output(f"two-{stage}-none") / "deepspeed.json").read_text())
        assert config["zero_optimization"]["stage"] == number
        assert config["train_micro_batch_size_per_gpu"] == 2
    assert not (two_ranks.output("two-replicas-none") / "deepspeed.json").exists()


# -- what all ranks decide together -----------------------------------------------------------------------------


def test_every_rank_returns_the_same_summary(two_ranks: SeveralRanks) -> None:
    for name, outcome in two_ranks.results[0].items():
        other = two_ranks.results[1][name]
        assert outcome.keys() == other.keys(), name
        if "steps" in outcome.get("result", {}):
            assert scores_of(outcome["result"]) == scores_of(other["result"]), name
            assert outcome["result"]["steps"] == other["result"]["steps"], name


@pytest.mark.parametrize("run", ["4x1-none", "regression", "words"])
def test_evaluation_is_exact_over_ranks(two_ranks: SeveralRanks, run: str) -> None:
    # 13 rows (26 candidates for label words) are not shared evenly by 2 ranks.
    trained = two_ranks.output(f"one-{run}")
    alone = evaluate_run(trained, "test", ONE_RANK)
    together = two_ranks.result(f"evaluation-{run}")
    types = alone.pop("per_type", None)
    assert together.pop("per_type", None) == types
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-6)
    assert {f"test/{name}": value for name, value in alone.items()} == {
        name: value for name, value in summary_of(trained).items() if name.startswith("test/")
    }


def test_all_ranks_refuse_together_what_does_not_read_as_the_plain_model(two_ranks: SeveralRanks) -> None:
    """Shared out by ZeRO-3, in 4 bits and bf16: one block drops the prefix."""
    said = {rank["two-forgetful"]["result"]["refused"] for rank in two_ranks.results}
    (message,) = said
    assert "method.name: sk_prefix is not available for this llama" in message
    assert "from block 2 of 3 on" in message
    assert "use sk_prompt, which was tried and holds" in message


def test_trying_step_zero_changes_nothing_under_zero3(two_ranks: SeveralRanks) -> None:
    tried, untried = two_ranks.output("two-zero3-nf4"), two_ranks.output("two-untried-nf4")
    assert largest_difference(adapter(tried), adapter(untried)) == 0.0
    curves = [
        {key: value for key, value in points(output).items() if key[0].startswith(("train/", "validation/"))}
        for output in (tried, untried)
    ]
    assert curves[0] == curves[1]


def test_early_stopping_is_one_decision(two_ranks: SeveralRanks) -> None:
    for rank in two_ranks.results:
        result = rank["two-early"]["result"]
        assert (result["steps"], result["best_step"]) == (6, 2)
    alone = summary_of(two_ranks.output("one-early"))
    assert (alone["steps"], alone["best_step"]) == (6, 2)
    assert_close_run(two_ranks.output("one-early"), two_ranks.output("two-early"))


def test_the_adapter_is_the_best_checkpoint_under_zero3(two_ranks: SeveralRanks) -> None:
    output = two_ranks.output("two-early")
    assert largest_difference(adapter(output), checkpoint_adapter(output, 2)) == 0.0
    assert largest_difference(adapter(output), checkpoint_adapter(output, 6)) > 1e-3


def test_a_loss_that_is_no_number_stops_both_ranks_before_the_update(two_ranks: SeveralRanks) -> None:
    for rank in two_ranks.results:
        assert "FloatingPointError: the loss became" in rank["two-diverging"]["error"]
        assert "at step 2" in rank["two-diverging"]["error"]
    output = two_ranks.workshop.output("two-diverging")
    assert list_checkpoints(output) == [1]
    assert all(tensor.isfinite().all() for tensor in checkpoint_weights(output, 1).values())
    assert not (output / "adapter").exists()


# -- the launchers ----------------------------------------------------------------------------------------------


def test_the_evaluation_launcher_reproduces_the_summary(two_ranks: SeveralRanks, start: Start) -> None:
    output = two_ranks.output("two-zero3-none")
    running = start(deepspeed_command(ROOT / "launchers" / "evaluate.py", output, "--split", "validation"))
    assert running.wait(120) == 0, running.output()[-3000:]
    written = json.loads((output / "evaluation" / "validation.json").read_text())
    for name, value in summary_of(output).items():
        if name.startswith("validation/"):
            assert written[name.removeprefix("validation/")] == pytest.approx(value, rel=1e-6, abs=1e-6)
    records = (output / "evaluation" / "validation.predictions.jsonl").read_text().splitlines()
    assert sorted(json.loads(record)["row"] for record in records) == list(range(17))


def test_when_one_rank_is_killed_the_others_end_with_it(workshop: Workshop, tmp_path: Path, start: Start) -> None:
    output = workshop.output("orphan")
    endless = {"training": {"max_steps": 1_000_000}}
    recipe = workshop.write("orphan", LONG, TWO_BY_TWO, endless, tracked(tmp_path / "mlflow.db"))
    running = start(deepspeed_command(ROOT / "launchers" / "train.py", "--recipe", recipe))
    running.wait_for(checkpoint_path(output, 5))
    workers = running.workers()
    assert sorted(workers) == [0, 1]
    killed = time.monotonic()
    workers[1].send_signal(signal.SIGKILL)
    assert running.wait(60) != 0
    assert time.monotonic() - killed < 40
    assert not workers[0].is_running()
    said = running.output()
    assert str(workers[1].pid) in said  # which process died
    assert not (output / "summary.json").exists()
    step = list_checkpoints(output)[-1]
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint_weights(output, step).values())
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status in ("FAILED", "KILLED")
