"""Bytes that each rank really holds, of sktune and of the stock stack, from loading to the checkpoint.

    python benchmarks/sharding.py [--only NAME ...]     # all cells that are not in the result yet
    python benchmarks/sharding.py --compare-plan        # puts `sktune plan` beside a saved result, and checks the bars
    python benchmarks/sharding.py --small               # a 4M-parameter LLaMA, to try the script; keeps nothing

A LLaMA of 405 million random parameters (hidden 2048, intermediate 5504, 8 layers, vocabulary 1000, bf16), SK-Prefix
with one shared adapter of rank 8, token classification, a batch of 1 x 16 tokens on each rank, on 2 and 3 processes of
the CPU started by `deepspeed`, in 16, 8 and 4 bits, without and with gradient checkpointing. "Stock" is what
transformers and bitsandbytes load, in the same module and on the same ZeRO-3 engine. How bytes are counted is said in
`sharding_meter.py`. Each cell goes to benchmarks/results/sharding.json as soon as it is there; cells that are in the
file are not run again. Exits with 1 where a bar does not hold or a cell failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launching import RESULTS, ROOT, cpu_environment, deepspeed, facts, read_result, save
from sharding_bars import bars, cell_name, compare_plan
from sharding_meter import check
from sharding_model import FULL, SMALL, UNEVEN, write_model
from sharding_report import print_bars, write_report

RESULT = RESULTS / "sharding.json"
LOSSES = 20

Jobs = dict[str, dict[str, Any]]


def launches(model: Path, uneven: Path, small: bool) -> dict[str, tuple[int, Jobs]]:
    """Of each cell by its name: the ranks, and the jobs of its launch."""
    result: dict[str, tuple[int, Jobs]] = {}
    for ranks in (2,) if small else (2, 3):
        for bits in (4,) if small else (4, 8, 16):
            for stack in ("sktune", "stock"):
                name = cell_name(ranks, bits, stack)
                job = {"kind": "measure", "stack": stack, "bits": bits, "model": str(model), "dtype": "bfloat16"}
                result[name] = ranks, {name: {**job, "rows": ranks, "steps": LOSSES if ranks == 2 else 0}}
    if small:
        return result
    codes = {"kind": "train", "model": str(model), "dtype": "float32", "rows": 2, "steps": LOSSES}
    codes |= {"bits": 8, "codes": str(model.parent / "codes.safetensors")}
    result["8 bits in fp32"] = 2, {stack: {**codes, "stack": stack} for stack in ("sktune", "reference")}
    for ranks in (1, 2, 3):
        jobs = {
            f"{bits} bits": {
                "kind": "train", "stack": "sktune", "bits": bits, "model": str(uneven), "dtype": "float32",
                "rows": 6, "steps": 6,
            }
            for bits in (4, 8, 16)
        }  # fmt: skip
        result[f"same results/{ranks} ranks"] = ranks, jobs
    return result


def launch(ranks: int, jobs: Jobs, folder: Path) -> dict[str, Any]:
    """Runs jobs on so many processes; the only one's result, theirs by name, or the failure."""
    file = folder / "job.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    result = file.with_suffix(".result.json")
    result.unlink(missing_ok=True)
    command = deepspeed(ROOT / "benchmarks" / "sharding_cell.py", file, ranks=ranks)
    finished = subprocess.run(command, env=cpu_environment(), check=False)
    # A process group sometimes ends badly after all is written.
    if not result.exists():
        return {"status": f"failed with exit status {finished.returncode}"}
    results: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    only = next(iter(results.values()))
    return {"status": "finished", **(only if len(results) == 1 else results)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="cells whose name contains one of these")
    parser.add_argument("--compare-plan", action="store_true", help="measures nothing")
    parser.add_argument("--small", action="store_true", help="4-bit cells of a small model on 2 ranks")
    parser.add_argument("--output", type=Path, help="result file; with --small, by default none is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path: Path = options.output or (folder / "result.json" if options.small else RESULT)
        shape = SMALL if options.small else FULL
        result = read_result(path, {"cells": {}})
        result["environment"] = {"device": "CPU", "threads_per_rank": 1, **facts()}
        result["model"] = shape
        result["instrument_check"] = check()
        if not options.compare_plan:
            measure(result, path, folder, shape, options)
        compare_plan(result["cells"], shape)
        result["bars"] = bars(result["cells"], full_size=not options.small)
        save(result, path)
        if path == RESULT:
            write_report(result)
    print_bars(result["bars"])
    failed = [name for name, cell in result["cells"].items() if cell["status"] != "finished"]
    print(*(f"{name}: {result['cells'][name]['status']}" for name in failed), sep="\n")
    return int(bool(failed) or not all(bar["holds"] for bar in result["bars"]))


def measure(
    result: dict[str, Any], path: Path, folder: Path, shape: dict[str, int], options: argparse.Namespace
) -> None:
    """Runs the launches whose cells are not in the result."""
    model, uneven = folder / "model", folder / "uneven"
    write_model(model, shape)
    write_model(uneven, UNEVEN)
    for name, (ranks, jobs) in launches(model, uneven, options.small).items():
        done = result["cells"].get(name, {}).get("status") == "finished"
        if done or (options.only and not any(part in name for part in options.only)):
            continue
        print(f"== {name}", flush=True)
        started = time.monotonic()
        result["cells"][name] = launch(ranks, jobs, folder)
        print(f"   {time.monotonic() - started:.0f} s", flush=True)
        save(result, path)


if __name__ == "__main__":
    sys.exit(main())
