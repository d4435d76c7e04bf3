"""From the command to the first optimizer step: `sktune train` against a script of transformers' Trainer with peft.

    python benchmarks/startup.py [--rounds 5] [--output FILE]

Both fine-tune the miniature LLaMA that comes with sktune on its sentiment data, with LoRA, in one process without
DeepSpeed; the clock runs from starting Python until the line that tells of the first step arrives. By turns, a round
each, after one round that is not counted. `sktune, tracked` has MLflow on, in a SQLite file; the others track nothing.
Median and all rounds go to benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launching import RESULTS, ROOT, cpu_environment, facts, save

LIMIT = 1.3
STOCK = ROOT / "benchmarks" / "startup_stock.py"
RECIPE = """
model: {name_or_path: "embedded:llama", dtype: float32}
method: {name: lora}
task: {name: sequence_classification}
data: {path: "embedded:sentiment", validation: null, max_length: 64}
training: {max_steps: 1, per_device_train_batch_size: 16, logging_steps: 1}
distributed: {deepspeed: null}
output: {dir: unset, overwrite: true}
"""


def contestants(scratch: Path) -> dict[str, tuple[list[str], str]]:
    """(command, what the line of the first step begins with) by name."""
    recipe = scratch / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    train = [sys.executable, "-m", "sktune", "train", str(recipe)]
    plain = [*train, "tracking.enabled=false", f"output.dir={scratch / 'plain'}"]
    uri = f"tracking.tracking_uri=sqlite:///{scratch / 'mlflow.db'}"
    return {
        "transformers' Trainer with peft": ([sys.executable, str(STOCK), str(scratch / "stock")], "step 1"),
        "sktune": (plain, "step 1/"),
        "sktune, tracked": ([*train, uri, f"output.dir={scratch / 'tracked'}"], "step 1/"),
    }


def seconds_to_first_step(command: list[str], sign: str) -> float:
    """Runs a command to its end; seconds until a line begins with `sign`.

    Raises:
        RuntimeError: where it never comes, with what the command wrote.
    """
    started, found, said = time.perf_counter(), None, []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=cpu_environment(), cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if found is None and line.startswith(sign):
            found = time.perf_counter() - started
    if process.wait() or found is None:
        raise RuntimeError(f"{command}: exit status {process.returncode}: {''.join(said)[-2000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        running = contestants(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for number in range(options.rounds + 1):
            for name, (command, sign) in running.items():
                took = seconds_to_first_step(command, sign)
                if number:  # the first round fills the caches of the disk
                    seconds[name].append(took)
    stock = statistics.median(seconds["transformers' Trainer with peft"])
    found = {
        name: {"median": statistics.median(all_of), "rounds": all_of, "ratio": statistics.median(all_of) / stock}
        for name, all_of in seconds.items()
    }
    environment = facts(("torch", "transformers", "peft", "mlflow"))
    save({"seconds": found, "limit": LIMIT, "environment": environment}, options.output)
    for name, numbers in found.items():
        print(f"{numbers['median']:6.2f} s  {numbers['ratio']:.2f}  {name}")
    return int(found["sktune"]["ratio"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
