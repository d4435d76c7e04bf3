"""The convergence study for people: tables and verdicts in docs/convergence.md, a picture for each study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sktune.comparison.pictures import Curve, blank_picture, draw_curves, line_colour
from sktune.comparison.report import Spread, first_step
from sktune.tasks.metrics import SMALLER_IS_BETTER, is_better

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "convergence.md"
BEGIN, END = "<!-- begin of what benchmarks/convergence.py writes -->", "<!-- end -->"
OURS = ("sk_prefix", "sk_prompt")
RIVALS = {
    "as published": ("prompt_tuning", "prefix_tuning", "p_tuning"),
    "from the same text": ("prompt_tuning_text", "prefix_tuning_text"),
}
"""Prompt, prefix and p-tuning: from noise or the vocabulary, and from where SK-Tuning starts."""

Entry = dict[str, Any]


def write_report(result: dict[str, Any]) -> None:
    """Replaces the generated part of docs/convergence.md, and draws the pictures."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END, 1)[1]
    studies = "\n".join(section(name, study) for name, study in result.items())
    PAGE.write_text(f"{before}{BEGIN}\n\n{overview(result)}\n{studies}\n{END}{after}", encoding="utf-8")
    for name, study in result.items():
        draw(name, study)


def overview(result: dict[str, Any]) -> str:
    """Two lines a study: the target, and whether it is met."""
    columns = (
        *("study", "seeds", "better of SK-Prefix and SK-Prompt", "best rival", "score"),
        *("steps to the target", "steps to where the rival ends", "parameters"),
    )
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, study in result.items():
        for group, labels in RIVALS.items():
            found = verdict(study, labels)
            if found is None:
                continue
            ours, rival = found["ours"], found["rival"]
            score = f"{_score(ours)} against {_score(rival)}: {'better' if found['better'] else 'not better'}"
            half = "half or less" if found["half_the_steps"] else "more than half"
            steps = f"{_all_steps(study, ours)} against {_all_steps(study, rival)}: {half}"
            parameters = f"{ours['trainable_parameters']:,}"
            if found["lora_parameters"]:
                parameters += f" against {found['lora_parameters']:,} of LoRA"
            seeds = str(min(ours["finished"], rival["finished"]))
            passed = steps_to_the_end_of(rival, ours, study["metric"])
            passed_at = f"{passed} of {study['settings']['steps']}" if passed else "never"
            cells = (name, seeds, ours["label"], f"{rival['label']} ({group})", score, steps, passed_at, parameters)
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def verdict(study: dict[str, Any], rivals: Sequence[str]) -> dict[str, Any] | None:
    """The target of a study: a better score than the best rival, in half its steps, no larger than LoRA.

    Of each side the method with the best validation score is taken; steps are those to the study's target, mean over
    seeds. A rival's seed that did not reach it counts as if it had at the last step. None where one side is missing.
    """
    entries = {entry["label"]: entry for entry in _scored(study)}
    sides = [[entries[label] for label in labels if label in entries] for labels in (OURS, rivals)]
    if not all(sides):
        return None
    ours, rival = (best(side, study["metric"]) for side in sides)
    rival_steps = fmean(steps or study["settings"]["steps"] for steps in steps_of_seeds(study, rival))
    return {
        "ours": ours,
        "rival": rival,
        "better": is_better(study["metric"], ours["score"]["mean"], rival["score"]["mean"]),
        "half_the_steps": ours["steps_to_target"] is not None and ours["steps_to_target"] <= rival_steps / 2,
        "lora_parameters": entries["lora"]["trainable_parameters"] if "lora" in entries else 0,
    }


def steps_of_seeds(study: dict[str, Any], entry: Entry) -> list[int | None]:
    """Steps to the target of each seed at the entry's grid point; None where a seed did not get there."""
    point = "".join(f"-{field.rpartition('.')[2]}={json.dumps(value)}" for field, value in entry["grid"].items())
    found = {name.rpartition("-seed"): steps for name, steps in study["steps_by_cell"].items()}
    steps = [steps for (cell, _, _), steps in found.items() if cell == entry["label"] + point]
    assert len(steps) == entry["finished"], f"{entry['label']}: {len(steps)} cells of {entry['finished']}"
    return steps


def steps_to_the_end_of(rival: Entry, ours: Entry, metric: str) -> int | None:
    """First step at which our mean validation score is no worse than the rival's last one; None: never."""
    mine, theirs = ([(int(step), point["mean"]) for step, point in e["curve"].items()] for e in (ours, rival))
    return first_step(mine, theirs[-1][1], metric)


def section(name: str, study: dict[str, Any]) -> str:
    """A study's table."""
    shared, metric = study["settings"], study["metric"]
    fields = ", ".join(f"{field} of {values}" for field, values in shared["grid"].items())
    for label, grid in shared["own_grids"].items():
        fields += "".join(f"; of {label} {values}" for values in grid.values())
    tested = f"at most {shared['test_samples']} test examples" if shared["test_samples"] else "all test examples"
    lines = [
        f"### {name}: {metric} on {tested}",
        "",
        f'{shared["steps"]} steps of {shared["batch"]} examples; {fields}; text: "{shared["text"]}".',
        "",
        f"![validation {metric} over steps](pictures/convergence_{name}.png)",
        "",
        f"| method | rate | test {metric} | validation {metric} | seeds | trainable | steps to {study['target']:.3f} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in _scored(study):
        rate = ", ".join(f"{value:g}" for value in entry["grid"].values())
        lines.append(
            f"| {entry['label']} | {rate} | {_score(entry)} | {_score(entry, 'validation')} | {entry['finished']} "
            f"| {entry['trainable_parameters']:,} | {_steps(entry)} |"
        )
    if study["floor"] is not None:
        lines.append(f"| {study['floor_name']} | | {study['floor']:.4f} | | | | |")
    lines += [f"| {label} | | failed: {reason} | | | | |" for label, reason in study["failed"].items()]
    return "\n".join(lines) + "\n"


def draw(name: str, study: dict[str, Any]) -> None:
    """Validation score over steps, SK-Tuning's lines the thickest."""
    labels = sorted(entry["label"] for entry in study["entries"])
    curves = []
    for entry in _scored(study):
        label = entry["label"]
        points = {int(step): Spread(**point) for step, point in entry["curve"].items()}
        style = {"color": line_colour(labels.index(label)), "linewidth": 2.4 if label in OURS else 1.2}
        curves.append(Curve(label, points, style))
    figure, axes = blank_picture()
    draw_curves(axes, curves, study["metric"], study["target"])
    figure.savefig(DOCS / "pictures" / f"convergence_{name}.png", dpi=110, format="png")


def best(entries: list[Entry], metric: str) -> Entry:
    """The entry with the best mean validation score."""
    choose = min if metric in SMALLER_IS_BETTER else max
    return choose(entries, key=lambda entry: entry["validation"]["mean"])


def _score(entry: Entry, kind: str = "score") -> str:
    value = entry[kind]
    return f"{value['mean']:.4f}" + ("" if value["deviation"] is None else f" ± {value['deviation']:.4f}")


def _scored(study: dict[str, Any]) -> list[Entry]:
    return [entry for entry in study["entries"] if entry["score"]]


def _all_steps(study: dict[str, Any], entry: Entry) -> str:
    return ", ".join(str(steps or "never") for steps in steps_of_seeds(study, entry))


def _steps(entry: Entry) -> str:
    if entry["steps_to_target"] is not None:
        return f"{entry['steps_to_target']:.0f}"
    return f"{entry['reached']} of {entry['finished']} seeds" if entry["reached"] else "not reached"
