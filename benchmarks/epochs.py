"""Five epochs from the command to the last step: the upper half on kept states, against peft in the Trainer.

    python benchmarks/epochs.py [--rounds 2]       # SmolLM2-135M in bfloat16 and film reviews: `sktune fetch` both

All train on the same 192 sentences in batches of 16, answered by a word of the language model, and are then scored on
the same 200. The clock runs from starting Python until the last step is done: loading, the pass that reads the lower
blocks, and every epoch. sktune: SK-Prefix in all blocks, in the upper half, and in the upper half on kept states
(training.frozen_states: memory); LoRA likewise. Stock: peft's prefix tuning and LoRA. Each at one rate, given here.
By turns, a round each. Goes to benchmarks/results/epochs.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from epochs_stock import INSTRUCTION
from launching import PACKAGES, RESULTS, ROOT, facts, save
from startup import seconds_to_first_step

RESULT = RESULTS / "epochs.json"
STOCK = ROOT / "benchmarks" / "epochs_stock.py"
EPOCHS, ROWS, TESTED, BATCH = 5, 192, 200, 16
STEPS = EPOCHS * ROWS // BATCH
AT_LEAST = 2.0
"""How many times as fast the upper half on kept states is to be as each of peft's methods."""
KEPT = "training.frozen_states=memory"
SK, LORA = f"name: sk_prefix, text: {json.dumps(INSTRUCTION)}", "name: lora, rank: 8"
TEXT = json.dumps(f"{INSTRUCTION}{{text}}\nSentiment:")
OURS: dict[str, list[str]] = {
    "sk_prefix, all blocks": [f"method={{{SK}}}", "training.learning_rate=1e-2"],
    "sk_prefix, upper half": [f"method={{{SK}, layers: 1/2}}", "training.learning_rate=3e-2"],
    "sk_prefix, upper half, kept": [f"method={{{SK}, layers: 1/2}}", "training.learning_rate=3e-2", KEPT],
    "lora, upper half, kept": [
        f"method={{{LORA}, layers: 1/2}}", "training.learning_rate=1e-2", f"data.text_template={TEXT}", KEPT,
    ],
}  # fmt: skip
PEFT = {"peft prefix tuning": ("prefix", "3e-2"), "peft lora": ("lora", "3e-3")}
RECIPE = """
model: {{name_or_path: "embedded:smollm2", dtype: bfloat16}}
task: {{name: causal_lm, label_words: {{negative: negative, positive: positive}}}}
data: {{path: "{data}", train: train.jsonl, validation: null, test: test.jsonl, text_template: {template},
       max_length: 64}}
training: {{num_train_epochs: {epochs}, per_device_train_batch_size: {batch}, warmup_steps: 3, save_steps: 100000}}
distributed: {{deepspeed: null}}
tracking: {{enabled: false}}
"""


def write_data(folder: Path) -> None:
    """The first sentences of the training and the test split."""
    from sktune.embedded import resolve

    source = resolve("embedded:film_reviews", "data")
    folder.mkdir()
    for split, count in (("train", ROWS), ("test", TESTED)):
        lines = (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_ours(overrides: list[str], scratch: Path) -> tuple[float, float]:
    """(seconds to the last step, test accuracy) of one run of sktune."""
    recipe, output = scratch / "recipe.yaml", scratch / "run"
    template = json.dumps("{text}\nSentiment:")
    text = RECIPE.format(data=scratch / "data", template=template, epochs=EPOCHS, batch=BATCH)
    recipe.write_text(text, encoding="utf-8")
    train = [sys.executable, "-m", "sktune", "train", str(recipe)]
    output_of = f"output={{dir: {output}, overwrite: true}}"
    seconds = seconds_to_first_step([*train, *overrides, output_of], f"step {STEPS}/{STEPS}")
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return seconds, summary["test/accuracy"]


def run_peft(kind: str, rate: str, scratch: Path) -> tuple[float, float]:
    """The same of peft in transformers' Trainer."""
    from sktune.embedded import resolve

    output, model = scratch / "stock", resolve("embedded:smollm2", "model")
    command = [sys.executable, str(STOCK), kind, str(model), str(scratch / "data"), rate, str(EPOCHS), str(output)]
    seconds = seconds_to_first_step(command, "trained")
    return seconds, json.loads((output / "accuracy.json").read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    arms = [*OURS, *PEFT]
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_data(scratch / "data")
        for number in range(options.rounds):
            for arm in arms:
                one = run_ours(OURS[arm], scratch) if arm in OURS else run_peft(*PEFT[arm], scratch)
                found[arm].append(one)
                print(f"round {number + 1}  {one[0]:7.1f} s  accuracy {one[1]:.3f}  {arm}", flush=True)
    kept = [seconds for seconds, _ in found["sk_prefix, upper half, kept"]]
    bars = []
    for arm in arms:
        ratios = [seconds / ours for (seconds, _), ours in zip(found[arm], kept, strict=True)]
        bar: dict[str, Any] = {"what": f"times the seconds of the upper half on kept states: {arm}", "rounds": ratios}
        bar["measured"] = statistics.median(ratios)
        if arm in PEFT:
            bar |= {"at_least": AT_LEAST, "holds": bar["measured"] >= AT_LEAST}
        bars.append(bar)
        print(f"{bar['measured']:5.2f}  {arm}{'' if bar.get('holds', True) else '  DOES NOT HOLD'}")
    result = {
        "bars": bars,
        "rounds": {arm: [{"seconds": s, "accuracy": a} for s, a in all_of] for arm, all_of in found.items()},
        "rows": ROWS, "epochs": EPOCHS, "batch": BATCH, "tested": TESTED,
        "environment": facts((*PACKAGES, "peft")),
    }  # fmt: skip
    save(result, RESULT)
    return int(not all(bar.get("holds", True) for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
