"""The users' own commands at true size: train, killed, resumed, predict; resident memory is watched from outside."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from launching import ROOT, cpu_environment, deepspeed
from resident import Watch, family

STEPS = 8
KILLED_AT = 4
SENTENCE = "bade fig cabaji hegi dab jehaf bid gace"


class Failed(Exception):
    """A command that did not do what it should; with the end of what it wrote."""


def run(command: list[str], log: Path, *, on_gpu: bool, kill_at: Path | None = None) -> dict[str, Any]:
    """Runs a command to its end, or kills all of it as soon as a path is there.

    Returns:
        Seconds, and resident memory by rank.

    Raises:
        Failed: for another exit status than 0, or where it ended before it could be killed.
    """
    environment = None if on_gpu else cpu_environment()
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        watch = Watch(process.pid)
        while process.poll() is None and not (kill_at is not None and kill_at.exists()):
            time.sleep(0.05)
        resident = watch.stop()
        if process.poll() is None:
            everyone = family(process.pid)
            for member in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
            process.wait()
            _, alive = psutil.wait_procs(everyone, timeout=30)
            if alive:
                raise Failed(f"still there after SIGKILL: {alive}")
        elif kill_at is not None or process.returncode:
            raise Failed(f"exit status {process.returncode}: {tail(log)}")
    return {"seconds": time.perf_counter() - started, "resident": resident}


def tail(log: Path) -> str:
    """The end of what a command wrote."""
    return log.read_text(encoding="utf-8", errors="replace")[-1500:]


def train_kill_resume_predict(
    recipe: Path, overrides: list[str], output: Path, *, ranks: int, on_gpu: bool
) -> dict[str, Any]:
    """Trains with the users' command, kills it after a checkpoint, resumes it to the end, and predicts.

    Raises:
        Failed: where a command fails, or the resumed run does not go on from the checkpoint.
    """
    script = ROOT / "launchers" / "train.py"
    logs = output.parent
    arguments = ["--recipe", str(recipe), *overrides]
    checkpoint = output / "checkpoints" / f"step-{KILLED_AT:08d}"
    command = deepspeed(script, *arguments, ranks=ranks)
    killed = run(command, logs / "killed.log", on_gpu=on_gpu, kill_at=checkpoint)
    shown = [word for word in command if word not in overrides]
    result: dict[str, Any] = {
        "command": " ".join(Path(word).name if "/" in word else word for word in shown),
        "killed": killed | {"after_checkpoint": checkpoint.name},
        "said_while_loading": loading_lines(logs / "killed.log"),
        "checkpoint_bytes": sum(file.stat().st_size for file in checkpoint.iterdir()),
    }
    resumed = run(deepspeed(script, *arguments, "--resume", ranks=ranks), logs / "resumed.log", on_gpu=on_gpu)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    losses = losses_by_step(output / "metrics.jsonl")
    goes_on = f"resuming from {checkpoint}" in (logs / "resumed.log").read_text(encoding="utf-8")
    if sorted(losses) != list(range(1, STEPS + 1)) or not goes_on:
        raise Failed(f"steps {sorted(losses)} are not 1 to {STEPS}: {tail(logs / 'resumed.log')}")
    result["resumed"] = resumed | {
        "steps": summary["steps"],
        "seconds_a_step": summary["train_seconds"] / summary["steps"],
        "median_loss": statistics.median(losses.values()),
        "resident_peak_bytes": summary["memory/resident_peak_bytes"],
        "frozen_bytes": summary["memory/frozen_bytes"],
    }
    # One process: it holds the whole quantized model.
    predict = [sys.executable, "-m", "sktune", "predict", str(output), "--json", "--text", SENTENCE]
    answered = run(predict, logs / "predict.log", on_gpu=on_gpu)
    said = (logs / "predict.log").read_text(encoding="utf-8").splitlines()
    answer = json.loads(next(line for line in said if line.startswith("{")))  # lines of the log may come after it
    if len(answer["tags"]) != len(SENTENCE.split()):
        raise Failed(f"predict said {answer}")
    result["predict"] = {"seconds": answered["seconds"], "tags": len(answer["tags"])}
    return result


UPPER = ["method.layers=1/3", "training.frozen_states=disk", "training.stream_frozen_blocks=true"]


def train_upper(recipe: Path, overrides: list[str], output: Path, *, ranks: int, on_gpu: bool) -> dict[str, Any]:
    """Trains the upper third with the users' command; the blocks below are held one at a time.

    Raises:
        Failed: where the command fails.
    """
    script, log = ROOT / "launchers" / "train.py", output.parent / "upper.log"
    command = deepspeed(script, "--recipe", str(recipe), *overrides, *UPPER, ranks=ranks)
    trained = run(command, log, on_gpu=on_gpu)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return trained | {
        "overrides": UPPER,
        "steps": summary["steps"],
        "seconds_a_step": summary["train_seconds"] / summary["steps"],
        "median_loss": statistics.median(losses_by_step(output / "metrics.jsonl").values()),
        "resident_peak_bytes": summary["memory/resident_peak_bytes"],
        "frozen_bytes": summary["memory/frozen_bytes"],
    }


def losses_by_step(metrics: Path) -> dict[int, float]:
    """Loss of each step, by the run that came last to it."""
    found: dict[int, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "train/loss" in entry["metrics"]:
            found[entry["step"]] = entry["metrics"]["train/loss"]
    return found


def loading_lines(log: Path) -> list[str]:
    """What a run said of its loading: that one can follow it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith("loading weights: ")]
