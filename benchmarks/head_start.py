"""The first steps with the head as a run starts it ("started"), and with torch's random head ("random").

    python benchmarks/head_start.py --data FOLDER --ratings FILE --smollm2 FOLDER --minilm FOLDER [--only WORD ...]
    python benchmarks/head_start.py --report

FOLDER of --data holds polarity/ (JSON lines) and wnut17/ (two-column IOB2 files); FILE is
`movieReviewSnippets_GroundTruth.txt` of the source archive of vaderSentiment 3.3.2; the models' folders are those of
SmolLM2-135M-Instruct and all-MiniLM-L6-v2. One process without DeepSpeed, through `sktune.training.run.train`, with the
recipes of recipes/compare/; both heads get the same batches. Each cell goes to benchmarks/results/head_start.json when
it has finished; cells that are in the file are not run again, --only takes those whose name contains the word. --report
prints the table. --small is for the tests: two cells of a few steps on what comes with sktune.

The random head is put in by this script: weights and bias as `nn.Linear` draws them, and no centre.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from transformers import AutoTokenizer

from sktune.distributed.ranks import Ranks
from sktune.model.tuned_model import TunedModel
from sktune.recipe import load_recipe_document
from sktune.tasks.heads import TrainedHead
from sktune.training.run import train

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "head_start.json"
HEADS = ("random", "started")
FIRST = 16
"""Steps whose losses are averaged."""
SHORT = 18
"""Tokens of the longest sentence that SmolLM2 gets: a step of 16 of them takes two seconds on one core."""
JSONL = {"train": "train.jsonl", "validation": None, "test": "test.jsonl"}
CONLL = {"train": "train.conll", "validation": None, "test": "test.conll"}
BF16 = {"dtype": "bfloat16", "attn_implementation": "eager"}

STUDIES: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "smollm2/polarity": ("polarity", {"model": {"dtype": "bfloat16"}, "data": JSONL}, 24, "accuracy"),
    "minilm/polarity": ("polarity", {"model": BF16, "data": JSONL}, 60, "accuracy"),
    "minilm/wnut17": (
        "wnut17",
        {"model": BF16, "data": {**CONLL, "tags_column": "tags"}},
        80,
        "f1",
    ),
    "minilm/ratings": (
        "polarity",
        {
            "model": BF16,
            "method": {"text": "Rate the sentiment of the film review, from bad to good:"},
            "task": {"name": "regression"},
            "data": {**JSONL, "label_column": "score"},
        },
        60,
        "pearson",
    ),
    "miniature/sentiment": ("sentiment", {"data": {"validation": None, "test": "test"}}, 60, "accuracy"),
    "miniature/newswire": ("newswire", {"data": {"validation": None, "test": "test"}}, 60, "f1"),
}
"""Model and data -> recipe of recipes/compare, what is changed of it, steps, score of the test split."""
RATES = {"head_only": 1e-2, "sk_prefix": 1e-2, "lora": 1e-3}
"""Of what the method trains besides the head, whose rate is 0.01."""


def cells(seeds: list[int]) -> list[tuple[str, str, str, int]]:
    """(study, method, head, seed) of all."""
    return [
        (study, method, head, seed)
        for study in STUDIES
        for seed in seeds
        for method in ("sk_prefix", "head_only", "lora")
        for head in HEADS
    ]


def _overrides(study: str, method: str, seed: int, steps: int, folders: dict[str, str], output: str) -> list[str]:
    _, changes, _, _ = STUDIES[study]
    model, data = study.split("/")
    sections: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in changes.items()}
    if method != "sk_prefix":
        sections["method"] = {"name": method}
    if model in folders:
        sections["model"]["name_or_path"] = folders[model]
        sections["data"]["path"] = folders[f"{model}/{data}"]
    lines = [
        f"{section}={yaml.safe_dump(fields, default_flow_style=True).strip()}"
        if section == "method" and "name" in fields
        else "\n".join(f"{section}.{key}={json.dumps(value)}" for key, value in fields.items())
        for section, fields in sections.items()
    ]
    return [
        *"\n".join(lines).split("\n"),
        "compare=null", "data.max_validation_samples=null",
        "data.max_test_samples=" + ("192" if model == "smollm2" else "500"),
        "training.per_device_train_batch_size=16", "training.per_device_eval_batch_size=32",
        "training.gradient_accumulation_steps=1",
        f"training.learning_rate={RATES[method]}", "training.head_learning_rate=0.01",
        f"training.max_steps={steps}", "training.eval_steps=null", "training.logging_steps=1", f"training.seed={seed}",
        "distributed.deepspeed=null", "tracking.enabled=false", f"output.dir={output}",
    ]  # fmt: skip


@contextmanager
def _random_head() -> Iterator[None]:
    def draw(model: TunedModel, rows: object) -> None:
        assert isinstance(model.head, TrainedHead)
        model.head.classifier.reset_parameters()

    with mock.patch("sktune.training.run.set_prior", draw), mock.patch("sktune.training.run.set_centre"):
        yield


def run(cell: tuple[str, str, str, int], folders: dict[str, str], steps: int | None = None) -> dict[str, Any]:
    """Losses of the first steps, each before its update, and the test score after the last."""
    study, method, head, seed = cell
    recipe, _, usual_steps, score = STUDIES[study]
    with tempfile.TemporaryDirectory() as folder:
        overrides = _overrides(study, method, seed, steps or usual_steps, folders, f"{folder}/run")
        loaded = load_recipe_document(ROOT / "recipes" / "compare" / f"{recipe}.yaml", overrides)
        alone = Ranks(0, 0, 1, torch.device("cpu"), launched=False)
        with _random_head() if head == "random" else nullcontext():
            summary = train(loaded, alone)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["train/loss"] for entry in (json.loads(line)["metrics"] for line in lines) if "train/loss" in entry]
    return {"losses": losses, "score": summary[f"test/{score}"], "test_loss": summary["test/loss"]}


def prepare(options: argparse.Namespace, work: Path) -> dict[str, str]:
    """Folders of models and data; short sentences and the ratings are written into `work`."""
    tokenizer = AutoTokenizer.from_pretrained(options.smollm2)
    for split in ("train", "test"):
        lines = (options.data / "polarity" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        short = [line for line in lines if len(tokenizer(json.loads(line)["text"])["input_ids"]) <= SHORT]
        _write(work / "short" / f"{split}.jsonl", short)
    rated = [line.split("\t") for line in options.ratings.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = [json.dumps({"text": text.strip(), "score": float(mean)}) + "\n" for _, mean, text in rated]
    _write(work / "ratings" / "train.jsonl", [row for number, row in enumerate(rows) if number % 10])
    _write(work / "ratings" / "test.jsonl", rows[::10])
    return {
        "smollm2": str(options.smollm2),
        "smollm2/polarity": str(work / "short"),
        "minilm": str(options.minilm),
        "minilm/polarity": str(options.data / "polarity"),
        "minilm/wnut17": str(options.data / "wnut17"),
        "minilm/ratings": str(work / "ratings"),
    }


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: mean and highest loss of the first steps, and the score, random head against the started one."""
    lines = [
        f"| model and data | method | seeds | mean loss of the first {FIRST} steps: random, started | highest | "
        "test score at the end |",
        "|---|---|---:|---|---|---|",
    ]
    for study, (_, _, steps, score) in STUDIES.items():
        for method in RATES:
            of_head = {
                head: [run for name, run in found.items() if name.startswith(f"{study}/{method}/{head}/")]
                for head in HEADS
            }
            if not all(of_head.values()):
                continue
            firsts = {head: [loss for run in runs for loss in run["losses"][:FIRST]] for head, runs in of_head.items()}
            lines.append(
                f"| {study}, {steps} steps | {method} | {'/'.join(str(len(runs)) for runs in of_head.values())} | "
                + ", ".join(f"{statistics.mean(losses):.3f}" for losses in firsts.values())
                + " | "
                + ", ".join(f"{max(losses):.2f}" for losses in firsts.values())
                + f" | {score} "
                + ", ".join(_spread([run["score"] for run in runs]) for runs in of_head.values())
                + " |"
            )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "ratings", "smollm2", "minilm"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="cells whose name contains one of these")
    parser.add_argument("--seeds", nargs="*", type=int, default=[42, 43, 44])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--report", action="store_true", help="print the table and run nothing")
    parser.add_argument("--small", action="store_true", help="two little cells on what comes with sktune")
    options = parser.parse_args()
    result = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"cells": {}}
    if options.report:
        print(table(result["cells"]))
        return
    if not options.small and None in (options.data, options.ratings, options.smollm2, options.minilm):
        parser.error("--data, --ratings, --smollm2 and --minilm are needed (or --small)")
    result["environment"] = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }
    chosen = (
        [("miniature/sentiment", "head_only", head, 42) for head in HEADS] if options.small else cells(options.seeds)
    )
    with tempfile.TemporaryDirectory() as work:
        folders = {} if options.small else prepare(options, Path(work))
        for cell in chosen:
            name = "/".join(map(str, cell))
            if name in result["cells"] or (options.only and not any(part in name for part in options.only)):
                continue
            found = run(cell, folders, 4 if options.small else None)
            assert all(math.isfinite(loss) for loss in found["losses"])
            print(f"{name}: {statistics.mean(found['losses'][:FIRST]):.3f}, then {found['score']:.3f}", flush=True)
            result["cells"][name] = found
            options.output.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
