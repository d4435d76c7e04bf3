"""Steps of the upper blocks alone, without and with kept states of the lower ones, against all blocks.

    python benchmarks/frozen_depth.py [--rounds 3] [--ranks 1]   # SmolLM2-135M and film reviews: `sktune fetch` both
    python benchmarks/frozen_depth.py --small                    # what comes with sktune, for the tests; keeps nothing

Each arm trains recipes/smollm2_film_reviews_words.yaml for two epochs of a few steps in a process of its own, and the
arms take turns, round by round. Of each run: seconds of the median step of the second epoch, seconds of the pass that
reads the lower blocks, bytes of frozen weights in training and of kept states, losses. Goes to
benchmarks/results/frozen_depth.json. Exits with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from launching import PACKAGES, RESULTS, ROOT, cpu_environment, deepspeed, facts, save

RESULT = RESULTS / "frozen_depth.json"
STEPS = 12
"""Of an epoch; there are two."""
KEPT = "training.frozen_states=memory"
ARMS: dict[str, list[str]] = {
    "all": [],
    "1/2": ["method.layers=1/2", "training.frozen_states=off"],
    "1/2 kept": ["method.layers=1/2", KEPT],
    "1/2 kept in 8 bits": ["method.layers=1/2", KEPT, "training.frozen_states_in_8bit=true"],
    "1/3": ["method.layers=1/3", "training.frozen_states=off"],
    "1/3 kept": ["method.layers=1/3", KEPT],
    "lora all": ["method={name: lora, rank: 8}"],
    "lora 1/2 kept": ["method={name: lora, rank: 8, layers: 1/2}", KEPT],
}
RECIPES = {False: "smollm2_film_reviews_words.yaml", True: "quickstart_miniature.yaml"}
BARS = {"1/2 kept": 1.8, "1/3 kept": 2.5}
"""How many times as fast as all blocks the second epoch is to be."""
OF_FROZEN_BYTES = 0.4
"""Most of all frozen bytes that a third of the blocks may take in training; the embeddings stay whole."""
FULL = [
    "data.validation=null",
    "data.max_validation_samples=null",
    "training.eval_steps=null",
    "data.max_test_samples=64",
]


def measure(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Trains in this process and times its parts."""
    from sktune.distributed.ranks import leave_ranks, start_ranks
    from sktune.process import prepare_process
    from sktune.recipe import load_recipe_document
    from sktune.training import frozen_states, run
    from sktune.training.meters import ThroughputMeter

    prepare_process()
    ranks = start_ranks(600)
    seconds: list[float] = []
    losses: list[float] = []
    reading: list[float] = []
    kept_bytes: list[int] = []

    class Timed(ThroughputMeter):
        def step(self, batches: Any) -> Any:
            before = self.train_seconds
            if self.steps:
                seconds.append(before - sum(seconds))
            return super().step(batches)

    keep = frozen_states.keep_frozen_states

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        kept = keep(*arguments)
        reading.append(time.perf_counter() - start)
        rows = [row for split in kept.values() for row in split or ()]
        kept_bytes.append(sum(row.states.nbytes for row in rows if row.states is not None))
        return kept

    check = run._check_loss

    def noted(loss: float, step: int) -> None:
        losses.append(loss)
        check(loss, step)

    with (
        mock.patch.object(run, "ThroughputMeter", Timed),
        mock.patch.object(run, "keep_frozen_states", timed),
        mock.patch.object(run, "_check_loss", noted),
    ):
        summary = run.train(load_recipe_document(Path(recipe), overrides), ranks)
    seconds.append(summary["train_seconds"] - sum(seconds))
    leave_ranks()
    return {
        "step_seconds": statistics.median(seconds[len(seconds) // 2 :]),
        "reading_seconds": reading[0],
        "kept_bytes": kept_bytes[0],
        "train_seconds": summary["train_seconds"],
        "frozen_bytes": summary["memory/frozen_bytes"],
        "losses": losses,
        "test": {name: summary[name] for name in ("test/accuracy", "test/loss")},
    }


def run_arm(arm: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One arm's run in a process of its own."""
    steps = 2 if options.small else STEPS
    result = folder / "result.json"
    changes = [
        f"training.max_steps={2 * steps}",
        f"data.max_train_samples={steps * options.batch}",
        f"training.per_device_train_batch_size={options.batch // options.ranks}",
        "training.save_steps=100000",
        "training.logging_steps=100000",
        "tracking.enabled=false",
        f"distributed.deepspeed={'zero3' if options.ranks > 1 else 'null'}",
        f"output={{dir: {folder / 'run'}, overwrite: true}}",
        *(["training.warmup_steps=null", "training.eval_steps=null"] if options.small else FULL),
        *ARMS[arm],
    ]
    script = [Path(__file__), "--measure", str(result), str(ROOT / "recipes" / RECIPES[options.small]), *changes]
    command = deepspeed(*script, ranks=options.ranks) if options.ranks > 1 else [sys.executable, *map(str, script)]
    done = subprocess.run(command, capture_output=True, text=True, env=cpu_environment(2 // options.ranks), check=False)
    if done.returncode:
        raise SystemExit(f"{arm}: {(done.stdout + done.stderr)[-3000:]}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1, help="with two, ZeRO-3")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step over all ranks")
    parser.add_argument("--small", action="store_true", help="a short run on what comes with sktune")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        result, recipe, *overrides = options.measure
        found = measure(recipe, overrides)
        if os.environ.get("RANK", "0") == "0":
            Path(result).write_text(json.dumps(found), encoding="utf-8")
        return 0
    rounds: list[dict[str, Any]] = []
    for number in range(1 if options.small else options.rounds):
        rounds.append({})
        for arm in ARMS:
            with tempfile.TemporaryDirectory() as folder:
                rounds[-1][arm] = run_arm(arm, options, Path(folder))
            found = rounds[-1][arm]
            print(f"round {number + 1}  {arm:18} {found['step_seconds']:.3f} s a step", flush=True)

    times = {
        arm: spread(
            [
                r["lora all" if arm.startswith("lora") else "all"]["step_seconds"] / r[arm]["step_seconds"]
                for r in rounds
            ]
        )
        for arm in ARMS
    }
    first = rounds[0]
    losses = {
        arm: max(abs(a - b) for a, b in zip(first[arm]["losses"], first[arm.partition(" ")[0]]["losses"], strict=True))
        for arm in ("1/2 kept", "1/2 kept in 8 bits", "1/3 kept")
    }
    share = first["1/3 kept"]["frozen_bytes"] / first["all"]["frozen_bytes"]
    bars = [
        {"what": f"{arm}: second epoch, times as fast as all blocks", "measured": times[arm]["median"], "at_least": bar}
        for arm, bar in BARS.items()
    ]
    bars.append({"what": "1/3 kept: frozen bytes in training, of all", "measured": share, "at_most": OF_FROZEN_BYTES})
    for bar in bars:
        bar["holds"] = bar["measured"] >= bar.get("at_least", 0) and bar["measured"] <= bar.get("at_most", float("inf"))
        print(f"{bar['what']}: {bar['measured']:.2f}  {'holds' if bar['holds'] else 'DOES NOT HOLD'}")
    if options.small:
        return 0
    key = f"{options.ranks} rank(s)"
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result[key] = {
        "times_as_fast": times,
        "largest_difference_of_a_loss": losses,
        "bars": bars,
        "rounds": rounds,
        "steps_an_epoch": STEPS,
        "rows_a_step": options.batch,
        "environment": facts((*PACKAGES, "peft")),
    }
    save(result, RESULT)
    return 0 if all(bar["holds"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
