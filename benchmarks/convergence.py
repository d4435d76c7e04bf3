"""Every method on real data: scores, steps to a target and parameters, each method at its own best learning rate.

    python benchmarks/convergence.py --data FOLDER [--only STUDY ...] [--jobs 2] [--full]

FOLDER holds polarity/ and snli/ (JSON lines), wnut17/ and ncbi_disease/ (two-column IOB2 files), and a small LLaMA in
models/stories260K/; the encoder is `embedded:minilm` (`sktune fetch minilm`). A study is a recipe of
recipes/compare/: every method there at each rate of the recipe's grid with one seed, then at its best one by validation
with two more; the same steps, batches and data for all. It is `sktune compare` and nothing else: a study that was
stopped goes on from the cell it was in (--work keeps it). Results go to
benchmarks/results/convergence.json, the tables and pictures to docs/convergence.md as soon as a study has finished. A
cell of the encoder takes 40 to 65 seconds on one core, one of the small models about half a minute: some three hours
for the whole on two cores, reckoned from that.

--full takes five times the steps, whole test sets, six rates and five seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from convergence_report import write_report

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "convergence.json"
SPLITS = {
    "polarity": ["train.jsonl", "validation.jsonl", "test.jsonl"],
    "snli": ["train.jsonl", "validation.jsonl", "test.jsonl"],
    "wnut17": ["train.conll", "dev.conll", "test.conll"],
    "ncbi_disease": ["train.tsv", "devel.tsv", "test.tsv"],
}
"""Files of each folder: for training, validation and test."""
STUDIES = {  # the folder of its data (None: they come with sktune), and which model reads them
    "polarity": ("polarity", "encoder"),
    "snli": ("snli", "encoder"),
    "wnut17": ("wnut17", "encoder"),
    "ncbi_disease": ("ncbi_disease", "encoder"),
    "captions": ("snli", "stories260K"),
    "newswire": (None, "miniature"),
    "sentiment": (None, "miniature"),
    "entailment": (None, "miniature"),
}
ARITHMETIC = ["model.dtype=bfloat16", "model.attn_implementation=eager"]
"""For the encoder: with AVX512-BF16 a cell takes two thirds of fp32's time, and sdpa's backward is slow there."""
FULL = [
    "training.max_steps=1200", "training.eval_steps=50", "data.max_validation_samples=null",
    "data.max_test_samples=null", "compare.grid={training.learning_rate: [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]}",
    "compare.own_grids.lora={training.learning_rate: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}",
    "compare.own_grids.bottleneck_adapter={training.learning_rate: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}",
]  # fmt: skip


def overrides_of(study: str, data: Path, full: bool) -> list[str]:
    """What a study changes of its recipe: where things are, and the size."""
    folder, model = STUDIES[study]
    overrides = []
    if folder is not None:
        files = zip(("train", "validation", "test"), SPLITS[folder], strict=True)
        overrides += [f"data.path={data / folder}", *(f"data.{split}={file}" for split, file in files)]
    if model == "encoder":
        overrides += ["model.name_or_path=embedded:minilm", *ARITHMETIC]
    elif model == "stories260K":
        # Its vocabulary of 512 pieces makes two or three tokens of a word.
        overrides += [f"model.name_or_path={data / 'models' / model}", "data.max_length=128"]
    return [*overrides, "tracking.enabled=false", *(FULL if full else [])]


def run(study: str, data: Path, work: Path, full: bool) -> dict[str, Any]:
    """One study from its first cell to its report; cells that are there are not run again."""
    from sktune.cli import main as sktune
    from sktune.comparison.report import build_report
    from sktune.comparison.results import read_results

    recipe, folder = str(ROOT / "recipes" / "compare" / f"{study}.yaml"), work / study
    overrides = overrides_of(study, data, full)
    place = ["--output", str(folder), "--skip-refused"]
    _checked(sktune(["compare", recipe, *overrides, "--seeds", "1", *place]))
    for entry in build_report(read_results(folder)).entries:
        chosen = [f"{field}={value}" for field, value in entry.grid.items()]
        grid = [part for choice in chosen for part in ("--grid", choice)]
        seeds = ["--seeds", "5" if full else "3"]
        _checked(sktune(["compare", recipe, *overrides, "--methods", entry.label, *grid, *seeds, *place]))
    report = build_report(read_results(folder))
    return {"size": "full" if full else "small", "settings": settings(recipe, overrides), **report.as_json()}


def _checked(status: int) -> None:
    """A failed cell (1) is reported; whatever else ended a comparison ends the study."""
    if status not in (0, 1):
        raise RuntimeError(f"sktune compare ended with status {status}; see its message")


def settings(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """What all methods of a study share, and how each is set."""
    from sktune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    compare = loaded.compare.model_dump(mode="json")
    return {
        "steps": loaded.training.max_steps,
        "batch": loaded.training.per_device_train_batch_size,
        "head_learning_rate": loaded.training.head_learning_rate,
        "grid": compare["grid"],
        "own_grids": compare["own_grids"],
        "validation_samples": loaded.data.max_validation_samples,
        "test_samples": loaded.data.max_test_samples,
        "text": getattr(loaded.method, "text", None),
        "methods": compare["methods"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--jobs", type=int, default=2, help="studies at once, each with one thread")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "convergence", help="where the runs are kept")
    parser.add_argument("--full", action="store_true", help="the large study: days on two cores")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before a worker imports torch
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    work = options.work.resolve() / ("full" if options.full else "small")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        started = {study: pool.submit(run, study, options.data.resolve(), work, options.full) for study in options.only}
        for study, running in started.items():
            found = running.result()
            result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
            found["environment"]["cpu"] = platform.processor() or platform.machine()
            result[study] = found
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            write_report(result)


if __name__ == "__main__":
    main()
