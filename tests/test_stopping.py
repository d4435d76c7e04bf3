"""Stopped by a signal: at a step, with a checkpoint, and no process left; and one run in a folder at a time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from training_fixtures import (
    LONG,
    ROOT,
    TWO_BY_TWO,
    Running,
    Sections,
    SeveralRanks,
    Start,
    Workshop,
    assert_close_run,
    assert_same_run,
    deepspeed_command,
    points,
    torchrun_command,
    tracked,
)

from sktune.cli import main
from sktune.comparison.results import load_state
from sktune.training.checkpoint import checkpoint_path, list_checkpoints

TRAIN = ROOT / "launchers" / "train.py"
ENDLESS: Sections = {"training": {"max_steps": 1_000_000}}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path))


# -- at an exact moment, in this process ------------------------------------------------------------------------

At = Callable[[str, int], None]


@pytest.fixture
def signal_at() -> Iterator[At]:
    """Sends this process a signal when a log line begins with a text."""
    handlers: list[logging.Handler] = []

    def arrange(text: str, number: int) -> None:
        class Sender(logging.Handler):
            sent = False

            def emit(self, record: logging.LogRecord) -> None:
                if record.getMessage().startswith(text) and not self.sent:
                    self.sent = True
                    os.kill(os.getpid(), number)

        handlers.append(Sender())
        logging.getLogger("sktune").addHandler(handlers[-1])

    yield arrange
    for handler in handlers:
        logging.getLogger("sktune").removeHandler(handler)


@pytest.mark.parametrize(
    ("line", "stopped_at"),
    [
        ("step 1/8  epoch", 2),
        ("step 3/8  epoch", 4),  # where an evaluation is due, which is left to the resumed run
        ("step 4/8  epoch", 4),  # the evaluation has begun
        ("step 4/8  validation", 5),
        ("step 8/8  epoch", 8),
    ],
)
def test_stopped_at_a_step_and_resumed_equals_uninterrupted(
    workshop: Workshop, signal_at: At, capfd: pytest.CaptureFixture[str], line: str, stopped_at: int
) -> None:
    workshop.train("whole")
    recipe = workshop.write("parts")
    signal_at(line, signal.SIGTERM)
    assert main(["train", str(recipe)]) == 143
    output = workshop.output("parts")
    assert list_checkpoints(output)[-1] == stopped_at
    assert not (output / "summary.json").exists()
    said = capfd.readouterr().err
    assert f"stopped by SIGTERM; go on with the same command and --resume (output.dir: {output})" in said
    assert "Traceback" not in said
    assert main(["train", str(recipe), "--resume"]) == 0
    assert_same_run(workshop.output("whole"), output)


@pytest.mark.parametrize("line", ["threads", "trainable params"])
def test_stopped_before_the_first_step(
    workshop: Workshop, signal_at: At, capfd: pytest.CaptureFixture[str], database: Path, line: str
) -> None:
    recipe = workshop.write("run", tracked(database))
    signal_at(line, signal.SIGINT)
    assert main(["train", str(recipe)]) == 130
    assert list_checkpoints(workshop.output("run")) == []
    said = capfd.readouterr().err
    assert "stopped by SIGINT; go on with" in said
    assert "Traceback" not in said
    if line != "threads":  # before it had begun
        assert _run(database).info.status == "KILLED"
    assert main(["train", str(recipe), "--resume"]) == 0


def test_a_stopped_command_leaves_nothing_behind_in_its_process(workshop: Workshop, signal_at: At) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    signal_at("trainable params", signal.SIGTERM)
    assert main(["train", str(workshop.write("run"))]) == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    # By the function, which listens to no signal.
    summary = workshop.train("after", LONG, {"training": {"max_steps": 2, "eval_steps": 2}})
    assert summary["steps"] == 2


def test_a_stopped_comparison_goes_on_in_the_middle_of_its_cell(
    workshop: Workshop, signal_at: At, capfd: pytest.CaptureFixture[str], tmp_path: Path, database: Path
) -> None:
    recipe = workshop.write("stopped", tracked(database))
    command = ["compare", str(recipe), "--methods", "head_only,lora"]
    signal_at("cell 2/2", signal.SIGUSR1)  # nothing asks for this one
    again = signal.signal(signal.SIGUSR1, lambda *_: signal_at("step 5/8", signal.SIGTERM))
    try:
        assert main(command) == 143
    finally:
        signal.signal(signal.SIGUSR1, again)
    folder = workshop.output("stopped")
    assert {cell.name: cell.status for cell in load_state(folder).cells} == {
        "head_only-seed42": "finished",
        "lora-seed42": "running",
    }
    assert list_checkpoints(folder / "cells" / "lora-seed42")[-1] == 6
    said = capfd.readouterr().err
    assert "stopped by SIGTERM; the same command goes on from there" in said
    assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{database}")
    runs = client.search_runs([_experiment(client)])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED", "KILLED"]
    assert main(command) == 0
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    assert_same_run(folder / "cells" / "lora-seed42", tmp_path / "whole" / "cells" / "lora-seed42")
    runs = client.search_runs([_experiment(client)])
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_stopped_evaluation_says_so_in_a_line(
    workshop: Workshop, signal_at: At, capfd: pytest.CaptureFixture[str]
) -> None:
    workshop.train("run")
    signal_at("threads", signal.SIGINT)
    assert main(["evaluate", str(workshop.output("run"))]) == 130
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in captured.err
    assert not (workshop.output("run") / "evaluation").exists()


# -- real processes ---------------------------------------------------------------------------------------------


def _experiment(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return experiment.experiment_id


def _run(database: Path) -> Run:
    client = MlflowClient(f"sqlite:///{database}")
    (run,) = client.search_runs([_experiment(client)])
    return run


def _ended(processes: list[psutil.Process], seconds: float = 40) -> bool:
    """Whether all of them end by themselves."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        process.kill()
    return not alive


def _alone(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(TRAIN), *map(str, arguments)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_process(workshop: Workshop, start: Start, database: Path, number: signal.Signals) -> None:
    long: Sections = {"training": {"max_steps": 200}}
    workshop.train("whole", LONG, long)
    recipe = workshop.write("stopped", LONG, long, tracked(database))
    output = workshop.output("stopped")
    running = start(_alone("--recipe", recipe))
    running.wait_for(checkpoint_path(output, 5))
    running.process.send_signal(number)
    assert running.wait(40) == 128 + number
    said = running.output()
    assert f"stopped by {number.name}; go on with the same command and --resume" in said
    assert "Traceback" not in said
    run = _run(database)
    assert run.info.status == "KILLED"
    assert run.data.tags["error"] == f"Stopped: stopped by {number.name}"
    assert 5 <= list_checkpoints(output)[-1] < 200
    assert main(["train", str(recipe), "--resume"]) == 0
    assert_same_run(workshop.output("whole"), output)
    assert _run(database).info.status == "FINISHED"


@pytest.mark.parametrize("command", ["train", "predict"])
def test_while_libraries_are_being_imported(workshop: Workshop, start: Start, command: str) -> None:
    arguments: list[str | Path] = [workshop.write("run")]
    if command == "predict":
        workshop.train("run")
        arguments = [workshop.output("run"), "--text", "w1 w2"]
    running = start([sys.executable, "-m", "sktune", command, *map(str, arguments)])
    deadline = time.monotonic() + 60
    while not any("joblib" in map_.path or "libtorch" in map_.path for map_ in _maps(running.process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.process.send_signal(signal.SIGINT)
    assert running.wait(40) == 130
    assert running.output().splitlines()[-1].startswith("stopped by SIGINT")
    assert "Traceback" not in running.output()


def _maps(pid: int) -> list[Any]:
    return psutil.Process(pid).memory_maps()


def test_a_second_interrupt_does_not_wait_for_the_step(
    workshop: Workshop, start: Start, tmp_path: Path, database: Path
) -> None:
    rows = [{"text": f"w{i % 30} w{i % 7}", "label": "people" if i % 2 else "places"} for i in range(20_000)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = str(tmp_path / "many.jsonl")
    sections: Sections = {
        "task": {"name": "sequence_classification"},
        "data": {"path": str(tmp_path), "train": many, "validation": None, "test": None},
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 20_000,  # a step of minutes
            "max_steps": 2,
            "eval_steps": ...,
        },
    }
    recipe = workshop.write("run", sections, tracked(database))
    running = start(_alone("--recipe", recipe))
    _wait_for_line(running, "no validation")
    time.sleep(1)
    running.process.send_signal(signal.SIGINT)
    _wait_for_line(running, "Ctrl-C once more stops at once")
    time.sleep(1.5)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    assert running.wait(20) == 130
    assert list_checkpoints(workshop.output("run")) == []
    assert _run(database).info.status == "KILLED"
    assert "Traceback" not in running.output()


def _wait_for_line(running: Running, text: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while text not in running.output():
        assert running.process.poll() is None, running.output()[-3000:]
        assert time.monotonic() < deadline, running.output()[-3000:]
        time.sleep(0.01)


def _stop_two_ranks(
    workshop: Workshop, database: Path, running: Running, name: str, send: Callable[[], None]
) -> tuple[Path, str, int]:
    """Waits for a checkpoint, sends, and checks what holds however two ranks were told.

    Returns:
        The output folder, what was said, the launcher's exit status.
    """
    output = workshop.output(name)
    running.wait_for(checkpoint_path(output, 5), 300)
    family = running.family()
    assert sorted(running.workers()) == [0, 1]
    send()
    status = running.wait(60)
    assert _ended(family[1:]), running.output()[-3000:]
    said = running.output()
    assert said.count("go on with the same command and --resume") == 1, said[-3000:]
    assert "another process of this run ended" not in said
    assert not (output / "summary.json").exists()
    run = _run(database)
    assert run.info.status == "KILLED"
    assert run.data.tags["error"].startswith("Stopped: ")
    step = list_checkpoints(output)[-1]
    logged = [at for _, at in points(output, "train/")]
    assert step - LONG["training"]["logging_steps"] < max(logged) <= step  # nothing was trained beyond it
    return output, said, status


@pytest.mark.distributed
def test_ctrl_c_in_a_terminal_under_deepspeed(
    two_ranks: SeveralRanks, workshop: Workshop, start: Start, database: Path
) -> None:
    recipe = workshop.write("group", LONG, TWO_BY_TWO, tracked(database))
    running = start(deepspeed_command(TRAIN, "--recipe", recipe))
    send = lambda: os.killpg(running.process.pid, signal.SIGINT)  # noqa: E731
    output, said, status = _stop_two_ranks(workshop, database, running, "group", send)
    assert status == -signal.SIGINT  # as deepspeed's own first process ends: 130 in a shell
    assert "stopped by SIGINT" in said
    resumed = start(torchrun_command(TRAIN, "--recipe", recipe, "--resume"))
    assert resumed.wait(300) == 0, resumed.output()[-3000:]
    assert_same_run(two_ranks.output("two-long"), output)


@pytest.mark.distributed
@pytest.mark.parametrize("how", ["terminated", "killed", "one rank"])
def test_the_launcher_or_one_rank_under_deepspeed(workshop: Workshop, start: Start, database: Path, how: str) -> None:
    recipe = workshop.write("run", LONG, TWO_BY_TWO, ENDLESS, tracked(database))
    running = start(deepspeed_command(TRAIN, "--recipe", recipe))

    def send() -> None:
        if how == "one rank":
            running.workers()[1].send_signal(signal.SIGTERM)
        else:
            running.process.send_signal(signal.SIGTERM if how == "terminated" else signal.SIGKILL)

    *_, status = _stop_two_ranks(workshop, database, running, "run", send)
    expected = {"terminated": -signal.SIGTERM, "killed": -signal.SIGKILL, "one rank": 143}
    assert status == expected[how]


@pytest.mark.distributed
def test_the_launcher_under_torchrun(workshop: Workshop, start: Start, database: Path) -> None:
    short: Sections = {"training": {"max_steps": 60, "per_device_train_batch_size": 2}}
    workshop.train("whole", LONG, short, {"training": {"per_device_train_batch_size": 4}})
    recipe = workshop.write("run", LONG, short, tracked(database))
    running = start(torchrun_command(TRAIN, "--recipe", recipe))
    send = lambda: running.process.send_signal(signal.SIGINT)  # noqa: E731
    output, said, status = _stop_two_ranks(workshop, database, running, "run", send)
    assert status == 1  # of any error of torchrun's
    assert "stopped by SIGINT" in said
    # The resumed run takes another number of ranks.
    recipe = workshop.write("run", LONG, short, {"training": {"per_device_train_batch_size": 4}})
    assert main(["train", str(recipe), "--resume"]) == 0
    assert_close_run(workshop.output("whole"), output)


# -- one command in a folder at a time --------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_its_run_is_gone(
    workshop: Workshop, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    output = workshop.output("run")
    workshop.train("run")
    endless = workshop.write("run", LONG, ENDLESS, {"training": {"lr_scheduler_type": "constant"}})
    running = start(_alone("--recipe", endless, "output.overwrite=true"))
    running.wait_for(checkpoint_path(output, 10))
    before = (output / "recipe.yaml").read_bytes()
    for attempt in (
        ["train", str(endless)],
        ["train", str(endless), "--resume"],
        ["train", str(endless), "output.overwrite=true"],
        ["compare", str(endless), "--methods", "lora"],
    ):
        assert main(attempt) == 2
        said = capsys.readouterr().err
        assert f"output.dir: {output} is in use by process {running.process.pid} on {socket.gethostname()}, " in said
        assert "started 20" in said
    assert running.process.poll() is None
    assert (output / "recipe.yaml").read_bytes() == before
    running.kill()
    assert main(["train", str(endless), "--resume", f"training.max_steps={list_checkpoints(output)[-1] + 2}"]) == 0
    assert main(["evaluate", str(output)]) == 0


def test_a_folder_is_not_evaluated_while_a_run_writes_there(
    workshop: Workshop, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.train("run")
    recipe = workshop.write("run", LONG, ENDLESS)
    running = start(_alone("--recipe", recipe, "--resume"))
    running.wait_for(checkpoint_path(workshop.output("run"), 10))
    assert main(["evaluate", str(workshop.output("run"))]) == 2
    assert f"is in use by process {running.process.pid} on " in capsys.readouterr().err
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(40) == 143
    assert main(["evaluate", str(workshop.output("run"))]) == 0


# -- threads ----------------------------------------------------------------------------------------------------

SHOW_THREADS = """
import sys
from sktune.process import prepare_process
line = prepare_process()
import torch
from threadpoolctl import threadpool_info
threads = {pool["num_threads"] for pool in threadpool_info()}
sys.stdout.write(f"{line} | {torch.get_num_threads()} {threads}\\n")  # at once: two ranks share the pipe
"""


def _threads(command: list[str], **variables: str) -> list[str]:
    unset = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RANK", "LOCAL_RANK")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stdout.splitlines() if "threads: " in line]


def test_cores_are_shared_among_the_ranks_of_a_machine() -> None:
    alone = [sys.executable, "-c", SHOW_THREADS]
    cores = len(os.sched_getaffinity(0))
    assert _threads(["taskset", "-c", str(min(os.sched_getaffinity(0))), *alone]) == ["threads: 1 of 1 core | 1 {1}"]
    (line,) = _threads(alone, LOCAL_SIZE=str(cores))
    assert line.startswith("threads: 1 of ")
    assert line.endswith(f" for each of {cores} local ranks | 1 {{1}}") or cores == 1
    said = "threads: OMP_NUM_THREADS=1, as the environment says | 1 {1}"
    assert _threads(alone, OMP_NUM_THREADS="1") == [said]


@pytest.mark.distributed
def test_torchruns_own_single_thread_is_not_the_users(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(SHOW_THREADS)
    command = torchrun_command(script)
    own, users = _threads(command), _threads(command, OMP_NUM_THREADS="1")
    assert [" local ranks |" in line for line in own] == [True, True]
    assert users == ["threads: OMP_NUM_THREADS=1, as the environment says | 1 {1}"] * 2
