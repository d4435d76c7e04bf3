"""Trains on real data with real pretrained weights, through the real command on two processes with ZeRO-3.

    python benchmarks/real_data.py --data FOLDER [--only NAME ...]

FOLDER holds wnut17/ and ncbi_disease/ (two-column IOB2 files), polarity/ and snli/ (JSON lines) and
models/stories260K/ (a LLaMA of 260,032 parameters); the 22M-parameter encoder is `embedded:minilm` (`sktune fetch
minilm`). Each cell's summary goes to
benchmarks/results/real_data.json as soon as it is there; cells that are in the file are not run again.

Test scores are those of the first 1,000 examples. These are trials of the whole path at one setting and one seed each,
not a comparison of methods: steps are few, and the learning rate was not chosen for them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from launching import RESULTS, ROOT, deepspeed, facts, read_result, save

RESULT = RESULTS / "real_data.json"
KEPT = ("test/", "validation/", "steps", "trainable_parameters", "all_parameters")

TOKENS = {"task": {"name": "token_classification"}}
DATASETS: dict[str, dict[str, Any]] = {
    "wnut17": {
        **TOKENS,
        "data": {"train": "train.conll", "validation": "dev.conll", "test": "test.conll"},
        "text": "find the persons, locations, corporations, products, creative works and groups named in the text:",
    },
    "ncbi_disease": {
        **TOKENS,
        "data": {"train": "train.tsv", "validation": "devel.tsv", "test": "test.tsv"},
        "text": "find the names of diseases in the text:",
    },
    "polarity": {
        "task": {"name": "sequence_classification"},
        "data": {},
        "text": "Classify the positive or negative sentiment from the text",
    },
    "snli": {
        "task": {"name": "pair_classification"},
        "data": {"text_column": "premise", "text_pair_column": "hypothesis"},
        "text": "Recognize the textual entailment from the text:",
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {"model": {"dtype": "float32"}},
    "stories260K": {"model": {"dtype": "float32"}, "quantization": {"load_in_4bit": True}},
}
METHODS = ("sk_prefix", "head_only")
CELLS = [(model, data, method) for method in METHODS for model in MODELS for data in DATASETS]
CELLS = [cell for cell in CELLS if cell[0] == "minilm" or cell[2] == "sk_prefix"]


def model_name(name: str, data: Path) -> str:
    """What a recipe calls the model."""
    return str(data / "models" / name) if name == "stories260K" else f"embedded:{name}"


def recipe(model: str, dataset: str, method: str, data: Path, output: Path) -> dict[str, Any]:
    """The cell's recipe."""
    settings = DATASETS[dataset]
    task = dict(settings["task"])
    if task["name"] == "token_classification" and model == "stories260K":
        task["labelled_piece"] = "last"
    sections = {key: dict(value) for key, value in MODELS[model].items()}
    sections["model"]["name_or_path"] = model_name(model, data)
    return {
        **sections,
        "method": {"name": method, **({} if method == "head_only" else {"text": settings["text"]})},
        "task": task,
        "data": {
            "path": str(data / dataset),
            **({"test": "test"} | settings["data"]),
            "max_length": 128,
            "max_validation_samples": 300,
            "max_test_samples": 1000,
        },
        "training": {
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "max_steps": 150,
            "eval_steps": 75,
            "warmup_steps": 20,
            "learning_rate": 3e-2,
            "head_learning_rate": 1e-2,
            "logging_steps": 25,
        },
        "tracking": {"tracking_uri": f"sqlite:///{output.parent}/mlflow.db", "experiment_name": "real data"},
        "output": {"dir": str(output)},
    }


def run(cell: tuple[str, str, str], data: Path) -> dict[str, Any]:
    """One cell's summary, or its failure."""
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "recipe.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(recipe(*cell, data, output)), encoding="utf-8")
        command = deepspeed(ROOT / "launchers" / "train.py", "--recipe", file, ranks=2)
        finished = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False)
        if finished.returncode:
            return {"status": f"failed with exit status {finished.returncode}"}
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return {"status": "finished", **{key: value for key, value in summary.items() if key.startswith(KEPT)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="cells whose name contains one of these")
    options = parser.parse_args()
    result = read_result(RESULT, {"cells": {}})
    result["environment"] = {"ranks": 2, "zero_stage": 3, "threads_per_rank": 1, **facts()}
    for cell in CELLS:
        name = "/".join(cell)
        if name in result["cells"] or (options.only and not any(part in name for part in options.only)):
            continue
        print(f"== {name}", flush=True)
        result["cells"][name] = run(cell, options.data.resolve())
        save(result, RESULT)


if __name__ == "__main__":
    main()
