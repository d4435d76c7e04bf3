"""What the benchmarks share: starting `deepspeed`, the facts of the machine, and results that are kept."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "deepspeed", "bitsandbytes")


def deepspeed(script: Path, *arguments: str | Path, ranks: int) -> list[str]:
    """`deepspeed --num_gpus RANKS SCRIPT ...` of this environment, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
    return [*launcher, "--master_port", str(port), "--log_level", "warning", str(script), *map(str, arguments)]


def cpu_environment(threads: int = 1) -> dict[str, str]:
    """Of a process that is to see no GPU."""
    hidden = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **hidden, "OMP_NUM_THREADS": str(threads)}


def facts(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Of the machine and what is installed."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def read_result(path: Path, empty: dict[str, Any]) -> dict[str, Any]:
    """What a result file holds, or `empty`."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    return found


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the result as it is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
