"""The quickstart: five methods on a real language model and real data, in one table, then three predictions.

It runs the user's own commands and shows each: `sktune fetch`, `deepspeed --num_gpus 2 launchers/compare.py --recipe
recipes/quickstart.yaml`, `sktune predict`. Arguments are passed on as overrides of the recipe (training.max_steps=50).
An interrupted quickstart goes on where it was; a finished one begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SILENT_SECONDS = 8.0
"""After so long without a line from a command, one says that it still runs."""


@dataclass(frozen=True)
class Trial:
    """What is run: a recipe with a section `compare`, what it needs fetched, and what the last method is asked."""

    recipe: str
    folder: str
    fetched: tuple[str, ...]
    texts: tuple[str, ...]


REAL = Trial(
    "recipes/quickstart.yaml",
    "runs/compare/quickstart",
    ("smollm2", "film_reviews"),
    (
        "I nearly walked out twice, and I wish I had.",
        "The plot is thin, but the two leads are so charming that I did not mind.",
        "One of the best films I have seen in years.",
    ),
)
MINIATURE = Trial(
    "recipes/quickstart_miniature.yaml",
    "runs/compare/quickstart_miniature",
    (),
    ("According to Trolka , the singer and the comet are called Penic and Grosev .",),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the miniature model that comes with sktune, in 3 minutes")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe of all runs")
    options = parser.parse_intermixed_args()
    trial = MINIATURE if options.quick else REAL
    if trial.fetched and run(["sktune", "fetch", *trial.fetched]) != 0:
        print("quickstart: the model or the data cannot be had from this package index; running --quick instead")
        trial = MINIATURE
    return compare_and_predict(trial, options.overrides)


def compare_and_predict(trial: Trial, overrides: list[str]) -> int:
    """Runs the comparison and asks what it trained last; returns the exit status of the first command that failed."""
    folder = ROOT / trial.folder
    if folder.exists() and not unfinished(folder):
        shutil.rmtree(folder)
    processes = min(2, gpu_count()) or 2  # without a GPU: two processes on the CPU
    launcher = ["deepspeed", "--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "warning"]
    status = run([*launcher, "launchers/compare.py", "--recipe", trial.recipe, "--output", trial.folder, *overrides])
    if status:
        return status
    cells = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cells"]
    trained = f"{trial.folder}/{cells[-1]['folder']}"
    status = run(["sktune", "predict", trained, *(part for text in trial.texts for part in ("--text", text))])
    print("\nall runs, their curves and their comparison: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
    return status


def unfinished(folder: Path) -> bool:
    """Whether the folder holds a comparison that can be gone on with."""
    try:
        cells = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return False
    return any(cell["status"] != "finished" for cell in cells)


def run(command: list[str]) -> int:
    """Runs a command of the environment and shows its lines; returns its exit status."""
    print(f"$ {shlex.join(command)}", flush=True)
    environment = dict(os.environ)
    if gpu_count() == 0:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    program = str(Path(sys.executable).with_name(command[0]))
    started = time.monotonic()
    with subprocess.Popen(
        [program, *command[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        try:
            while (line := _next(lines, started)) is not None:
                print(line, end="", flush=True)
        except KeyboardInterrupt:  # a terminal has told the command too, others have not
            if process.poll() is None:
                process.terminate()
            while (line := lines.get()) is not None:
                print(line, end="", flush=True)
            raise
    return process.returncode


def _read(stream: Iterable[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[str | None], started: float) -> str | None:
    while True:
        try:
            return lines.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            print(f"... {time.monotonic() - started:.0f} s", flush=True)


def free_port() -> int:
    """A TCP port nobody listens on now, so that two quickstarts do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gpu_count() -> int:
    """NVIDIA GPUs of this machine, 0 where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
