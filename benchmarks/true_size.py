"""The shipped recipes for LLaMA-2 7B and Mistral 7B at their true size, on random weights.

    python benchmarks/true_size.py [--only NAME ...] [--folder PLACE] [--tokenizer FILE]
    python benchmarks/true_size.py --device cuda       # and tokens a second on a GPU, against peft and bitsandbytes
    python benchmarks/true_size.py --shape tiny        # some million parameters, to try the script; keeps nothing

Writes a folder of random weights in the model's true shape (33 files, 13.5 GB for LLaMA-2, 14.5 for Mistral; one at a
time, removed afterwards), with the tokenizer of a SentencePiece model, and runs the recipe's own command on it with two
processes and ZeRO-3: `recipes/llama7b_conll.yaml` in 4 bits, `recipes/mistral7b_conll.yaml` in 8. Only what must differ
is overridden: places, and a batch of 2 x 16 tokens for some steps. Parts, named RECIPE/PART:

    load     seconds to load in one process, against transformers with bitsandbytes, both from the disk, two rounds
    memory   bytes of tensors on each rank by a heap walk, while loading and in a step, against `sktune plan`
    train    the users' command, killed after a checkpoint, resumed, and `sktune predict`; resident memory beside it
    upper    the users' command with SK-Prefix in the upper third, the blocks below streamed: never in memory together
    speed    only with --device cuda (or --shape tiny): tokens a second, allocator's peak, where the time goes

Each part goes to benchmarks/results/true_size.json as soon as it is there; parts that have finished are not run again.
Exits with 1 where a bar does not hold or a part failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from launching import RESULTS, ROOT, cpu_environment, deepspeed, facts, read_result, save
from true_size_model import (
    BITS,
    DTYPES,
    EMBEDDED_TOKENIZER,
    bytes_of,
    check_disk,
    config_of,
    overrides,
    recipe_file,
    shapes,
    write_data,
    write_model,
)
from true_size_runs import STEPS, Failed, tail, train_kill_resume_predict, train_upper

RESULT = RESULTS / "true_size.json"
RANKS = 2
PARTS = ("load", "memory", "train", "upper", "speed")
LOAD_LIMIT, PLAN_LIMIT = 1.2, 0.05
UPPER_BYTES, UPPER_TIMES = 0.4, 2.5
NOT_ON_A_GPU = "not run on a GPU"


class Place:
    """Where one recipe is measured, and how."""

    def __init__(self, recipe: str, folder: Path, options: argparse.Namespace) -> None:
        self.recipe, self.folder = recipe, folder
        self.file, self.model, self.data = recipe_file(recipe), folder / "model", folder / "data"
        self.config = config_of(recipe, options.shape == "tiny")
        self.on_gpu = options.device == "cuda"
        self.options = options

    def build(self) -> dict[str, Any]:
        """Writes weights, tokenizer and data."""
        write_data(self.data)
        return write_model(self.model, self.config, DTYPES[self.recipe], self.options.tokenizer)

    def overrides(self, output: str) -> list[str]:
        return overrides(self.model, self.data, self.folder / output, STEPS)

    def environment(self, threads: int) -> dict[str, str] | None:
        return None if self.on_gpu else cpu_environment(threads)

    def run(self, command: list[str], name: str, threads: int = 1) -> str:
        """Standard output of a command.

        Raises:
            Failed: for another exit status than 0.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            environment = self.environment(threads)
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, env=environment, cwd=ROOT, check=False)
        if done.returncode:
            raise Failed(f"{name}: exit status {done.returncode}: {tail(log)}")
        return done.stdout.decode()

    def plan(self, ranks: int, more: list[str], output: str) -> dict[str, Any]:
        """`sktune plan --json`."""
        command = [sys.executable, "-m", "sktune", "plan", str(self.file), *self.overrides(output), *more]
        found: dict[str, Any] = json.loads(self.run([*command, "--gpus", str(ranks), "--json"], "plan"))
        return found

    # -- the parts ------------------------------------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Both stacks by turns, each in a process of its own, with as many threads."""
        threads = os.cpu_count() or 1
        found: dict[str, list[dict[str, Any]]] = {"sktune": [], "stock": []}
        for stack in ("sktune", "stock", "stock", "sktune"):
            output = self.folder / "load.json"
            script = ROOT / "benchmarks" / "true_size_load.py"
            command = [sys.executable, str(script), stack, str(self.file), str(self.model), str(output)]
            self.run(command, f"load_{stack}", threads)
            found[stack].append(json.loads(output.read_text(encoding="utf-8")))
        seconds = {stack: sum(one["seconds"] for one in rounds) for stack, rounds in found.items()}
        return {**found, "ratio": seconds["sktune"] / seconds["stock"]}

    def memory(self) -> dict[str, Any]:
        """Measured and planned bytes, and the plan's errors."""
        job = self.folder / "memory.json"
        job.write_text(json.dumps({"recipe": str(self.file), "overrides": self.overrides("memory")}), encoding="utf-8")
        self.run(deepspeed(ROOT / "benchmarks" / "true_size_cell.py", job, ranks=RANKS), "memory")
        measured = json.loads(job.with_suffix(".result.json").read_text(encoding="utf-8"))
        planned = self.plan(RANKS, [], "memory")
        pairs = {name: (planned["live"][name], max(sizes)) for name, sizes in measured["live"].items()}
        pairs["load_peak"] = planned["load_peak"], max(measured["load_peak"])
        pairs["training_peak"] = planned["training_peak"], max(measured["training_peak"])
        compared = {
            name: {"planned": plan, "measured": most, "error": plan / most - 1} for name, (plan, most) in pairs.items()
        }
        return {"by_rank": measured, "compared": compared}

    def train(self) -> dict[str, Any]:
        """The users' commands."""
        output = self.folder / "run"
        return train_kill_resume_predict(self.file, self.overrides("run"), output, ranks=RANKS, on_gpu=self.on_gpu)

    def upper(self) -> dict[str, Any]:
        """The users' command, on states that were read through one lower block at a time."""
        return train_upper(self.file, self.overrides("upper"), self.folder / "upper", ranks=RANKS, on_gpu=self.on_gpu)

    def speed(self) -> dict[str, Any]:
        """Steps a second against the stock stack, on one device."""
        options = self.options
        if not self.on_gpu and options.shape != "tiny":
            return {"note": NOT_ON_A_GPU}
        rows, tokens = (options.rows, options.tokens) if self.on_gpu else (2, 16)
        more = [
            *(f"training.per_device_train_batch_size={rows}", f"data.max_length={tokens}"),
            "training.gradient_checkpointing=false",
        ]
        job = self.folder / "speed.json"
        numbers = {
            "recipe": str(self.file),
            "overrides": [*self.overrides("speed"), *more],
            "device": options.device,
            "rows": rows,
            "tokens": tokens,
            "vocabulary": self.config.vocab_size,
            "matrix_parameters": sum(
                math.prod(shape)
                for name, shape in shapes(self.config).items()
                if ".layers." in name and len(shape) == 2
            ),
        }
        job.write_text(json.dumps(numbers), encoding="utf-8")
        self.run([sys.executable, str(ROOT / "benchmarks" / "true_size_speed.py"), str(job)], "speed")
        found: dict[str, Any] = json.loads(job.with_suffix(".result.json").read_text(encoding="utf-8"))
        planned = self.plan(1, more, "speed")
        return found | {"rows": rows, "tokens": tokens, "planned_training_peak": planned["training_peak"]}


def bars(recipes: dict[str, Any], full_size: bool) -> list[dict[str, Any]]:
    """What must hold of the parts that are there; time and peaks only at full size."""
    found = []
    for name, parts in recipes.items():
        ratio = parts.get("load", {}).get("ratio")
        if ratio is not None and full_size:
            what = f"{name}, {BITS[name]} bits: seconds to load, of transformers' with bitsandbytes"
            found.append({"what": what, "measured": ratio, "limit": LOAD_LIMIT, "holds": ratio <= LOAD_LIMIT})
        for moment, numbers in parts.get("memory", {}).get("compared", {}).items():
            # Inside a moment, kernels' own temporaries count; and beside a small model so does what is being quantized.
            if moment == "training_peak" or (moment == "load_peak" and not full_size):
                continue
            what = f"{name}, {BITS[name]} bits: the plan's error, {moment.replace('_', ' ')}"
            holds = abs(numbers["error"]) <= PLAN_LIMIT
            found.append({"what": what, "measured": numbers["error"], "limit": PLAN_LIMIT, "holds": holds})
        all_blocks, upper = parts.get("train", {}).get("resumed", {}), parts.get("upper", {})
        if "frozen_bytes" in all_blocks and "frozen_bytes" in upper and full_size:
            share = upper["frozen_bytes"] / all_blocks["frozen_bytes"]
            what = f"{name}, upper third: frozen bytes in training, of all blocks'"
            found.append({"what": what, "measured": share, "limit": UPPER_BYTES, "holds": share <= UPPER_BYTES})
        if "seconds_a_step" in all_blocks and "seconds_a_step" in upper and full_size:
            times = all_blocks["seconds_a_step"] / upper["seconds_a_step"]
            what = f"{name}, upper third: times as fast a step as all blocks"
            found.append({"what": what, "measured": times, "at_least": UPPER_TIMES, "holds": times >= UPPER_TIMES})
    return found


def attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, or how it failed; the others are run all the same."""
    try:
        return {"status": "finished", **part()}
    except Exception as error:  # the other parts take an hour: they are not lost with it
        print(f"   failed: {error}", flush=True)
        return {"status": f"failed: {error}"}


def is_done(part: dict[str, Any] | None, name: str, on_gpu: bool) -> bool:
    """Whether a part needs no other run; a GPU's numbers may still be missing."""
    if part is None or part["status"] != "finished":
        return False
    return not (name == "speed" and on_gpu and part.get("note") == NOT_ON_A_GPU)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts whose name contains one of these")
    parser.add_argument("--shape", choices=("true", "tiny"), default="true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where the weights are put for the time of the run")
    parser.add_argument("--tokenizer", type=Path, default=EMBEDDED_TOKENIZER, help="a SentencePiece model")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch, for speed on a GPU (default: 4)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row, for speed on a GPU (default: 128)")
    parser.add_argument("--output", type=Path, help="result file; with --shape tiny, by default none is kept")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        scratch = Path(temporary)
        tiny = options.shape == "tiny"
        path: Path = options.output or (scratch / "result.json" if tiny else RESULT)
        result = read_result(path, {"recipes": {}})
        result["environment"] = {"ranks": RANKS, "zero_stage": 3, "shape": options.shape, **facts()}
        result["environment"]["gpu"] = torch.cuda.get_device_name() if options.device == "cuda" else NOT_ON_A_GPU
        for recipe in BITS:
            measure(result, path, Place(recipe, scratch / recipe, options))
        result["bars"] = bars(result["recipes"], full_size=not tiny)
        save(result, path)
    for bar in result["bars"]:
        limit = bar.get("limit", bar.get("at_least"))
        print(f"{'holds' if bar['holds'] else 'DOES NOT HOLD'}  {bar['measured']:8.3f} ({limit})  {bar['what']}")
    failed = [
        f"{recipe}/{name}: {part['status']}"
        for recipe, parts in result["recipes"].items()
        for name, part in parts.items()
        if part["status"] != "finished"
    ]
    print(*failed, sep="\n")
    return int(bool(failed) or not all(bar["holds"] for bar in result["bars"]))


def measure(result: dict[str, Any], path: Path, place: Place) -> None:
    """Runs the parts of a recipe that are wanted and not in the result yet."""
    parts = result["recipes"].setdefault(place.recipe, {})
    wanted = [
        name
        for name in PARTS
        if not is_done(parts.get(name), name, place.on_gpu)
        and (not place.options.only or any(text in f"{place.recipe}/{name}" for text in place.options.only))
    ]
    if not wanted:
        return
    place.folder.mkdir()
    print(f"== {place.recipe}: writing weights", flush=True)
    check_disk(place.folder, bytes_of(place.config))
    folder = place.build()
    for name in wanted:
        print(f"== {place.recipe}/{name}", flush=True)
        parts[name] = attempt(partial(getattr(place, name))) | {"folder": folder}
        save(result, path)
    shutil.rmtree(place.folder)


if __name__ == "__main__":
    sys.exit(main())
