"""Benchmarks, small: what they measure at full size holds for a little model too."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_fixtures import ROOT, _environment

pytestmark = pytest.mark.distributed


def test_the_benchmark_of_the_heads_start_compares_it_with_a_random_head(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "head_start.py"), "--small", "--output", str(result)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    cells = json.loads(result.read_text(encoding="utf-8"))["cells"]
    random, started = (cells[f"miniature/sentiment/head_only/{head}/42"]["losses"][0] for head in ("random", "started"))
    # The two classes are equally frequent; a random head answers otherwise.
    assert abs(started - math.log(2)) < 0.01 < abs(random - math.log(2))
    done = subprocess.run([*command, "--report"], env=_environment(), capture_output=True, text=True, check=True)
    assert "| miniature/sentiment, 60 steps | head_only | 1/1 |" in done.stdout


def test_the_sharding_benchmark_runs_and_its_bars_hold(tmp_path: Path) -> None:
    """Two processes each with sktune's layers and with stock ones: the same losses, and the plan's bytes."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "sharding.py"), "--small", "--output", str(result)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(result.read_text(encoding="utf-8"))
    whats = [bar["what"] for bar in found["bars"]]
    assert any("stock" in what and "loss" in what for what in whats), whats
    assert any("plan" in what for what in whats), whats
    ours, stock = (found["cells"][f"2 ranks/4 bits/{stack}"]["off"]["live"] for stack in ("sktune", "stock"))
    for moment in ("after_load", "after_forward", "in_evaluation"):
        assert max(ours[moment]) < max(stock[moment])


def test_the_study_of_depths_compares_numbers_of_blocks() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "depth_study.py"), "--short"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    parameters = {point["layers"]: point["trainable_parameters"] for point in found["points"] if point["seeds"] == 1}
    assert parameters.keys() == {"all", "1/2"} == found["level_with_all"].keys()
    assert parameters["1/2"] < parameters["all"]


@pytest.mark.skipif("SKTUNE_LONG_TESTS" not in os.environ, reason="takes many minutes: set SKTUNE_LONG_TESTS=1")
def test_the_benchmark_of_7b_recipes_runs_and_its_bars_hold(tmp_path: Path) -> None:
    """Every part, each with one of the shipped recipes on a little model; and what is there is not run again."""
    result = tmp_path / "result.json"
    script = str(ROOT / "benchmarks" / "true_size.py")
    command = [sys.executable, script, "--shape", "tiny", "--folder", str(tmp_path), "--output", str(result), "--only"]
    wanted = ["llama7b_conll/load", "llama7b_conll/memory", "mistral7b_conll/train", "mistral7b_conll/speed"]
    wanted.append("llama7b_conll/upper")
    done = subprocess.run(
        [*command, *wanted], env=_environment(), capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["environment"]["gpu"] == "not run on a GPU"
    parts = {f"{recipe}/{name}": part for recipe, all_of in found["recipes"].items() for name, part in all_of.items()}
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(wanted, "finished")
    assert len(found["bars"]) == 4
    assert parts["mistral7b_conll/train"]["resumed"]["steps"] == 8
    for contestant in parts["mistral7b_conll/speed"]["contestants"].values():
        for stack in ("sktune", "stock"):
            assert contestant[stack]["tokens_per_second"] > 0, contestant[stack]
    assert list(tmp_path.iterdir()) == [result]  # weights and logs are gone
    before = result.read_bytes()
    subprocess.run([*command, *wanted], env=_environment(), check=True, timeout=120)
    assert result.read_bytes() == before


def test_the_benchmark_of_starting_up_reaches_the_first_step_of_each(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "startup.py"), "--rounds", "1", "--output", str(result)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    found = json.loads(result.read_text(encoding="utf-8"))["seconds"]  # exit status 1 says that a bar does not hold
    assert set(found) == {"transformers' Trainer with peft", "sktune", "sktune, tracked"}, done.stderr[-3000:]
    assert all(len(numbers["rounds"]) == 1 for numbers in found.values())


def test_the_load_test_of_serve_loses_and_mixes_up_nothing(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    sizes = ("--small", "--requests", "300", "--each", "32", "--rounds", "1")
    command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), *sizes, "--output", str(result)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert result.is_file(), (done.stdout + done.stderr)[-3000:]
    found = json.loads(result.read_text(encoding="utf-8"))  # exit status 1 says that a bar does not hold
    mixed = found["mixed_up"]
    assert (mixed["answered"], mixed["of_another_adapter"]) == (300, 0)
    assert mixed["largest_difference"] < 1e-4
    assert mixed["shared_passes"] > 0
    assert found["memory"]["ratio"] == pytest.approx(1, abs=0.1)
    assert all(set(clients) == {"1", "8", "32"} for clients in found["speed"].values())
    assert len(found["speed"]) == 3


def test_the_benchmark_of_predict_writes_what_transformers_writes() -> None:
    """It ends with an error where the texts differ; how fast they are is no matter here."""
    command = [sys.executable, str(ROOT / "benchmarks" / "predict.py"), "--small"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "tokens a second of 8 texts at once, of transformers' generate: " in done.stdout
