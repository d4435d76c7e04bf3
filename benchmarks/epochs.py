"""Time to a score, from the command on: the upper half on kept states, against peft in transformers' Trainer.

    python benchmarks/epochs.py [--rounds 2]       # SmolLM2-135M in bfloat16 and film reviews: `sktune fetch` both

All train on the same 192 sentences in batches of 16 for five epochs, on one thread, answered by a word of the language
model, and are scored on the same 200 after each epoch. The clock runs from starting Python until the last step is done:
loading, the pass that reads the lower blocks (of the 200 too), and every epoch; it stands while an epoch is scored.
sktune: SK-Prefix in all blocks and in the upper half, whose lower half is read once (training.frozen_states: auto), and
LoRA in the upper half. Stock: peft's prefix tuning and LoRA. Each at one rate, given here. By turns, a round each. Goes
to benchmarks/results/epochs.json, and as a picture to docs/pictures/time_to_score.png.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from epochs_stock import INSTRUCTION
from launching import PACKAGES, RESULTS, ROOT, cpu_environment, facts, save

RESULT = RESULTS / "epochs.json"
PICTURE = ROOT / "docs" / "pictures" / "time_to_score.png"
STOCK = ROOT / "benchmarks" / "epochs_stock.py"
EPOCHS, ROWS, TESTED, BATCH = 5, 192, 200, 16
STEPS = EPOCHS * ROWS // BATCH
AT_LEAST = 2.0
"""How many times as fast the upper half is to be as each of peft's methods."""
SK, LORA = f"name: sk_prefix, text: {json.dumps(INSTRUCTION)}", "name: lora, rank: 8"
TEXT = json.dumps(f"{INSTRUCTION}{{text}}\nSentiment:")
OURS: dict[str, list[str]] = {
    "sk_prefix, all blocks": [f"method={{{SK}}}", "training.learning_rate=1e-2"],
    "sk_prefix, upper half": [f"method={{{SK}, layers: 1/2}}", "training.learning_rate=3e-2"],
    "lora, upper half": [
        f"method={{{LORA}, layers: 1/2}}", "training.learning_rate=1e-2", f"data.text_template={TEXT}",
    ],
}  # fmt: skip
PEFT = {"peft prefix tuning": ("prefix", "3e-2"), "peft lora": ("lora", "3e-3")}
RECIPE = """
model: {{name_or_path: "embedded:smollm2", dtype: bfloat16}}
task: {{name: causal_lm, label_words: {{negative: negative, positive: positive}}}}
data: {{path: "{data}", train: train.jsonl, validation: test.jsonl, test: null, text_template: {template},
       max_length: 64}}
training: {{num_train_epochs: {epochs}, per_device_train_batch_size: {batch}, per_device_eval_batch_size: 32,
            warmup_steps: 3, logging_steps: {steps}, save_steps: 100000}}
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


def points(command: list[str], trained: str, scored: str) -> list[dict[str, float]]:
    """Runs a command to its end; seconds and accuracy of each epoch, the time of scoring left out.

    Args:
        command: prints lines as it goes.
        trained: pattern of the line at the end of an epoch's steps.
        scored: pattern of the line with the epoch's accuracy, which is its first group.

    Raises:
        RuntimeError: where it fails, or has not as many epochs; with what it wrote.
    """
    started, spent_scoring, reached = time.perf_counter(), 0.0, 0.0
    found: list[dict[str, float]] = []
    said = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=cpu_environment(), cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if re.match(trained, line):
            reached = time.perf_counter()
        elif match := re.match(scored, line):
            found.append({"seconds": reached - started - spent_scoring, "accuracy": float(match[1])})
            spent_scoring += time.perf_counter() - reached
    if process.wait() or len(found) != EPOCHS:
        raise RuntimeError(f"{command}: exit status {process.returncode}: {''.join(said)[-2000:]}")
    return found


def run_ours(overrides: list[str], scratch: Path) -> list[dict[str, float]]:
    """One run of sktune."""
    recipe, output = scratch / "recipe.yaml", scratch / "run"
    template = json.dumps("{text}\nSentiment:")
    text = RECIPE.format(data=scratch / "data", template=template, epochs=EPOCHS, batch=BATCH, steps=STEPS // EPOCHS)
    recipe.write_text(text, encoding="utf-8")
    train = [sys.executable, "-m", "sktune", "train", str(recipe)]
    output_of = f"output={{dir: {output}, overwrite: true}}"
    return points([*train, *overrides, output_of], r"step \d+/\d+  epoch", r".* validation: accuracy ([\d.]+)")


def run_peft(kind: str, rate: str, scratch: Path) -> list[dict[str, float]]:
    """The same of peft in transformers' Trainer."""
    from sktune.embedded import resolve

    output, model = scratch / "stock", resolve("embedded:smollm2", "model")
    command = [sys.executable, str(STOCK), kind, str(model), str(scratch / "data"), rate, str(EPOCHS), str(output)]
    return points(command, "trained", r"accuracy ([\d.]+)")


def draw(rounds: dict[str, list[list[dict[str, float]]]]) -> None:
    """The medians of each arm, one line each: seconds from the command, accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for arm, runs in rounds.items():
        seconds = [statistics.median(one["seconds"] for one in epoch) for epoch in zip(*runs, strict=True)]
        accuracy = [statistics.median(one["accuracy"] for one in epoch) for epoch in zip(*runs, strict=True)]
        stock = arm in PEFT
        label = f"{arm}, in transformers' Trainer" if stock else arm
        axes.plot(seconds, accuracy, "--" if stock else "-", marker="o", markersize=4, label=label)
    axes.set(
        xlabel="seconds from the command, loading and the reading of the lower blocks included",
        ylabel=f"accuracy on {TESTED} sentences",
        xlim=(0, None),
        title=f"{EPOCHS} epochs of {ROWS} film reviews, SmolLM2-135M, one CPU thread",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def compared(found: dict[str, list[list[dict[str, float]]]]) -> dict[str, Any]:
    """What goes to the result: seconds of all epochs over those of the upper half, by arm, and every point."""
    ours = [runs[-1]["seconds"] for runs in found["sk_prefix, upper half"]]
    bars = []
    for arm, rounds in found.items():
        ratios = [runs[-1]["seconds"] / seconds for runs, seconds in zip(rounds, ours, strict=True)]
        bar: dict[str, Any] = {"what": f"times the seconds of sk_prefix in the upper half: {arm}", "rounds": ratios}
        bar["measured"] = statistics.median(ratios)
        if arm in PEFT:
            bar |= {"at_least": AT_LEAST, "holds": bar["measured"] >= AT_LEAST}
        bars.append(bar)
        print(f"{bar['measured']:5.2f}  {arm}{'' if bar.get('holds', True) else '  DOES NOT HOLD'}")
    return {
        "bars": bars,
        "rounds": found,
        "rates": {**{arm: OURS[arm][1].partition("=")[2] for arm in OURS}, **{arm: PEFT[arm][1] for arm in PEFT}},
        "rows": ROWS, "epochs": EPOCHS, "batch": BATCH, "tested": TESTED,
        "environment": facts((*PACKAGES, "peft")),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="draw the picture of the recorded result again")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(RESULT.read_text(encoding="utf-8"))["rounds"])
        return 0
    arms = [*OURS, *PEFT]
    found: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_data(scratch / "data")
        for number in range(options.rounds):
            for arm in arms:
                one = run_ours(OURS[arm], scratch) if arm in OURS else run_peft(*PEFT[arm], scratch)
                found[arm].append(one)
                shown = "  ".join(f"{point['seconds']:.0f} s {point['accuracy']:.3f}" for point in one)
                print(f"round {number + 1}  {arm}: {shown}", flush=True)
    result = compared(found)
    save(result, RESULT)
    draw(found)
    return int(not all(bar.get("holds", True) for bar in result["bars"]))


if __name__ == "__main__":
    sys.exit(main())
