"""What grouping by length saves: the share of padding, and real tokens per second, against batches in random order.

    python benchmarks/input_pipeline.py --data FOLDER [--steps 30]

FOLDER holds wnut17/ (two-column IOB2 files) and snli/ (JSON lines); the 22M-parameter encoder and its tokenizer are
`embedded:minilm` (`sktune fetch minilm`). The padding of a whole epoch is counted exactly; tokens per second are
those of training steps (SK-Prefix) on batches drawn from both orders in turn, in one process, the median of ratios
between neighbours. The result goes to benchmarks/results/input_pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from real_data import DATASETS, recipe

from sktune.data import GlobalBatches
from sktune.distributed.optimizer import build_optimizer
from sktune.distributed.ranks import Ranks
from sktune.embedded import check_fetched
from sktune.recipe import Recipe, parse_recipe
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup, prepare

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "input_pipeline.json"
BAR = 0.10
BATCH = 32
ALONE = Ranks(0, 0, 1, torch.device("cpu"), launched=False)


def padding_share(batches: list[list[int]], lengths: list[int]) -> float:
    """Padded positions over all positions."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded


class Trainer:
    """Steps of one model on given batches."""

    def __init__(self, assembly: Setup, rows: list[Any]) -> None:
        self.assembly = assembly
        self.rows = rows
        self.optimizer = build_optimizer(assembly.model.trainable_parameters(), assembly.recipe.training)
        assembly.model.train()

    def step(self, numbers: list[int]) -> float:
        """Real tokens per second of one step, collating included."""
        start = time.perf_counter()
        batch = self.assembly.collator([self.rows[i] for i in numbers])
        output = self.assembly.model(**model_inputs(batch, torch.device("cpu")))
        assert output.loss is not None
        self.optimizer.zero_grad()
        output.loss.backward()
        self.optimizer.step()
        return sum(self.rows[i].length for i in numbers) / (time.perf_counter() - start)


def measure(dataset: str, data: Path, steps: int) -> dict[str, Any]:
    """Both orders on one data set."""
    settings: Recipe = parse_recipe(recipe("minilm", dataset, "sk_prefix", data, Path("unused")))
    assembly = prepare(settings, ALONE)
    assert assembly.raw is not None
    rows = list(assembly.encode(assembly.raw.train, "train").rows)
    lengths = [row.length for row in rows]
    epochs = {
        name: GlobalBatches(lengths, BATCH, 42, grouped).epoch(0)
        for name, grouped in (("grouped", True), ("random", False))
    }
    trainer = Trainer(assembly, rows)
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(steps + 1):
        for name, batches in epochs.items():
            # Evenly over the epoch: a group's first batches may be its longest.
            rate = trainer.step(batches[number * (len(batches) - 1) // (steps + 1)])
            if number:
                rates[name].append(rate)
    ratios = [one / other for one, other in zip(rates["grouped"], rates["random"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "rows": len(rows),
        "padding_share": {name: padding_share(batches, lengths) for name, batches in epochs.items()},
        "median_tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "grouped_over_random": {"median": median, "first_quartile": low, "third_quartile": high},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    check_fetched("embedded:minilm")
    found = {name: measure(name, options.data.resolve(), options.steps) for name in ("wnut17", "snli")}
    assert set(found) <= set(DATASETS)
    result = {
        "environment": {
            "device": f"CPU ({platform.machine()}), one thread",
            "batch": BATCH,
            "steps": options.steps,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "bar": BAR,
        "data": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return int(any(entry["padding_share"]["grouped"] > BAR for entry in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
