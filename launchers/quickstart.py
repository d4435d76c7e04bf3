"""The quickstart: what the frozen model knows, and what a text makes of it, in one table.

Head only, SK-Prefix with a text that has nothing to do with the task, and SK-Prefix, on the embedded model and data.

Each run is the real command, `deepspeed --num_gpus 2 launchers/train.py --recipe recipes/quickstart.yaml`; arguments
given here are passed on as overrides of the recipe (training.max_steps=20).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
UNRELATED = "the wind blew from the north and it rained for most of the day , with some sun in the evening ."
RUNS = {
    "head only": ["method={name: head_only}", "output.dir=runs/quickstart_head_only"],
    "SK-Prefix, unrelated text": [f"method.text={UNRELATED}", "output.dir=runs/quickstart_unrelated_text"],
    "SK-Prefix": ["output.dir=runs/quickstart"],
}


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


def run(overrides: list[str]) -> None:
    """One training run in its own processes; ends the quickstart where it fails."""
    gpus = gpu_count()
    processes = min(2, gpus) or 2  # without a GPU: two processes on the CPU
    command = [
        str(Path(sys.executable).with_name("deepspeed")),
        *("--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "warning"),
        *("launchers/train.py", "--recipe", "recipes/quickstart.yaml"),
        *overrides,
    ]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    if gpus == 0:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    print("$ deepspeed " + " ".join(f"'{part}'" if " " in part else part for part in command[1:]), flush=True)
    finished = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe of all runs")
    changes = parser.parse_args().overrides
    summaries: dict[str, dict[str, Any]] = {}
    for name, overrides in RUNS.items():
        run([*overrides, *changes])
        folder = ROOT / overrides[-1].removeprefix("output.dir=")
        summaries[name] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    table = Table(title="Entities on names that training never saw (test split, entity level)")
    for column in ("method", "trainable", "F1", "precision", "recall", "tokens/s", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, summary in summaries.items():
        table.add_row(
            name,
            f"{summary['trainable_parameters']:,}",
            *(f"{summary[f'test/{metric}']:.3f}" for metric in ("f1", "precision", "recall")),
            f"{summary.get('speed/real_tokens_per_second', 0):,.0f}",
            f"{summary['wall_seconds']:.0f}",
        )
    Console().print(table)
    print("all runs in MLflow: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")


if __name__ == "__main__":
    main()
