"""How many of a model's upper blocks SK-Prefix needs: scores over `method.layers` and learning rates, three seeds.

    python benchmarks/depth_study.py [--only STUDY ...] [--work FOLDER]      # `sktune fetch` first: see STUDIES
    python benchmarks/depth_study.py --short                                 # two cells of what comes with sktune

A study is a recipe of recipes/ and nothing but `sktune compare` over a grid; one that was stopped goes on from the cell
it was in (--work keeps it). Results go to benchmarks/results/depth_study.json as soon as a study has finished: of each
number of blocks and each rate the score, and at which rates it is level with all blocks at their best one: its mean is
not below by more than the larger of the two deviations over seeds, or one point where both are smaller.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from launching import PACKAGES, RESULTS, ROOT, facts, save

RESULT = RESULTS / "depth_study.json"
LAYERS = ("2/3", "1/2", "1/3")
"""Besides all of them."""
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = 3
POINT = 0.01
COMMON = ["distributed.deepspeed=null", "tracking.enabled=false"]
_ENCODER = ["model.name_or_path=embedded:minilm", "quantization={}", "model.dtype=float32", "training.max_steps=120"]
_DECODER = [
    "method={name: sk_prefix, text: 'Classify the sentiment of the movie review as positive or negative.\\nReview:'}",
    "training.per_device_train_batch_size=16",
    "training.max_steps=30",
    "training.eval_steps=15",
    "data.max_test_samples=300",
]
_REVIEWS = ["data.path=embedded:film_reviews", "data.max_test_samples=500"]
STUDIES: dict[str, tuple[str, list[str]]] = {
    "miniature sentiment": ("compare/sentiment.yaml", []),
    "miniature entailment": ("compare/entailment.yaml", []),
    "miniature newswire": ("compare/newswire.yaml", []),
    "minilm film reviews": ("compare/polarity.yaml", [*_ENCODER, *_REVIEWS]),
    "smollm2 film reviews in words": ("smollm2_film_reviews_words.yaml", _DECODER),
    "smollm2 film reviews": ("smollm2_film_reviews.yaml", _DECODER),
    "smollm2 film ratings": ("smollm2_film_ratings.yaml", _DECODER),
}
"""Recipe and changes. The encoder and SmolLM2 need `sktune fetch minilm smollm2 film_reviews`."""
SHORT = ["training.max_steps=2", "training.eval_steps=2", "data.max_validation_samples=16", "data.max_test_samples=16"]


def run(study: str, folder: Path, layers: tuple[str, ...], rates: tuple[float, ...], seeds: int) -> dict[str, Any]:
    """One study from its first cell to its table; cells that are there are not run again."""
    from sktune.cli import main as sktune
    from sktune.comparison.report import build_report
    from sktune.comparison.results import read_results

    recipe, changes = STUDIES[study]
    methods = {f"layers_{share.replace('/', '_of_')}": {"name": "sk_prefix", "layers": share} for share in layers}
    methods["layers_all"] = {"name": "sk_prefix"}
    compare = json.dumps({"grid": {"training.learning_rate": list(rates)}, "methods": methods, "select": "none"})
    status = sktune([
        "compare", str(ROOT / "recipes" / recipe), *COMMON, *changes, f"compare={compare}",
        "--seeds", str(seeds), "--output", str(folder),
    ])  # fmt: skip
    if status not in (0, 1):  # a failed cell (1) is reported
        raise RuntimeError(f"sktune compare ended with status {status}; see its message")
    report = build_report(read_results(folder)).as_json()
    points = [
        {
            "layers": entry["label"].removeprefix("layers_").replace("_of_", "/"),
            "rate": entry["grid"]["training.learning_rate"],
            "score": entry["score"],
            "loss": entry["scores"]["loss"],
            "seeds": entry["finished"],
            "trainable_parameters": entry["trainable_parameters"],
            "seconds": entry["seconds"],
        }
        for entry in report["entries"]
    ]
    return {"metric": report["metric"], "changes": changes, "points": points, "level_with_all": level(points)}


def level(points: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The rates at which each number of blocks scores as all of them do at their best one, to a deviation."""
    ours = [point for point in points if point["layers"] == "all"]
    best = max(ours, key=lambda point: point["score"]["mean"])["score"]
    found: dict[str, list[float]] = {}
    for point in points:
        allowed = max(best["deviation"] or 0.0, point["score"]["deviation"] or 0.0, POINT)
        rates = found.setdefault(point["layers"], [])
        if point["score"]["mean"] >= best["mean"] - allowed:
            rates.append(point["rate"])
    return {layers: sorted(rates) for layers, rates in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "depth_study", help="where the runs are kept")
    parser.add_argument("--short", action="store_true", help="two depths of one study, for the tests; keeps nothing")
    options = parser.parse_args()
    if options.short:
        with tempfile.TemporaryDirectory() as folder:
            STUDIES["miniature sentiment"][1][:] = SHORT
            found = run("miniature sentiment", Path(folder) / "study", ("1/2",), (1e-2,), 1)
        print(json.dumps(found, indent=1))
        return 0
    for study in options.only:
        found = run(study, options.work / study.replace(" ", "_"), LAYERS, RATES, SEEDS)
        result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"studies": {}}
        result["studies"][study] = found
        result["environment"] = facts((*PACKAGES, "peft"))
        save(result, RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
