"""Exporting a run's adapter, and replaying examples through what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sktune import __version__
from sktune.errors import UserError
from sktune.export import TARGETS
from sktune.export.trained import Trained, read_trained
from sktune.files import write_whole

CARD, README = "export.json", "README.md"
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""By `model.dtype`; 4-bit SmolLM2 in bfloat16 differed by 0.055 from transformers' own reading of 16 sentences."""


def export(
    run: Path,
    target: str,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    check: int | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Writes the adapter of a finished run in another tool's form.

    Args:
        run: the run's folder.
        target: one of `TARGETS`.
        output: the new folder; must not exist, or be empty.
        overrides: of the recipe that it was trained with: another precision to replay at, for example.
        check: replay so many examples of the test split through the target and compare.
        tolerance: largest difference of logits that is accepted, of the largest one; None: what the arithmetic of the
            recipe explains (`TOLERANCES`).

    Returns:
        The card that was written.

    Raises:
        UserError: for what the target cannot express, a folder that is not empty, and where the replay differs more.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} is there already; name a new folder")
    module = import_module(TARGETS[target])
    trained = read_trained(run, list(overrides), "test" if check else None)
    existed = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)
    try:
        usage = module.write(trained, output)
        card = _card(trained, target)
        if check:
            card["replayed"] = _replay(trained, module.Plain(trained, output), check)
        write_whole(output / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        write_whole(output / README, _readme(trained, card, usage))
        accepted = TOLERANCES[trained.recipe.model.dtype] if tolerance is None else tolerance
        if check and not card["replayed"]["largest_difference"] <= accepted:
            raise UserError(
                f"--check: logits there differ by {card['replayed']['largest_difference']:.2g} of the largest, more "
                f"than --tolerance {accepted:g}; nothing was kept"
            )
    except BaseException:
        for path in output.iterdir():
            path.unlink()
        if not existed:
            shutil.rmtree(output, ignore_errors=True)
        raise
    return card


def _card(trained: Trained, target: str) -> dict[str, Any]:
    recipe = trained.recipe
    return {
        "sktune_version": __version__,
        "target": target,
        "method": recipe.method.name,
        "task": recipe.task.name,
        "labels": None if trained.setup.labels is None else list(trained.setup.labels),
        "model": recipe.model.name_or_path,
        "revision": recipe.model.revision,
        "trained_in": f"{recipe.quantization.bits} bits" if recipe.quantization.bits else recipe.model.dtype,
        "positions_in_front": trained.setup.model.method.positions,
        "input_opens_with_special_tokens": not recipe.method.opens_sequence,
        "padding_side": "right",
    }


def _replay(trained: Trained, plain: Any, count: int) -> dict[str, Any]:
    """Logits of test examples here and there, rows padded on the right."""
    setup = trained.setup
    assert setup.raw is not None
    if setup.raw.test is None:
        raise UserError("--check: the recipe names no test split; set data.test=..., or leave --check out")
    examples = setup.raw.test[:count]
    rows = list(setup.encode(examples, "test", scoring=True).rows)
    setup.collator.padding_side = "right"
    worst, same, total = 0.0, 0, 0
    for start in range(0, len(rows), 8):
        batch = setup.collator(rows[start : start + 8])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            here = setup.model(ids, mask).logits
        there = plain.logits(ids, mask)
        real = mask.bool() if here.ndim == 3 else torch.ones(len(here), dtype=torch.bool)
        ours, theirs = here.float()[real], there[real].view(here[real].shape)
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
        if ours.ndim > 1:
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            total += len(ours)
    found: dict[str, Any] = {"examples": len(examples), "largest_difference": worst}
    return found | ({"same_answers": same / total} if total else {})


def _readme(trained: Trained, card: dict[str, Any], usage: str) -> str:
    replayed = card.get("replayed")
    checked = (
        f"Replayed on {replayed['examples']} test examples: logits within {replayed['largest_difference']:.1e} of the "
        f"largest{_same(replayed)}."
        if replayed
        else "Not replayed (`sktune export --check`)."
    )
    opening = (
        "Rows have no special tokens (`add_special_tokens=False`): the text in front has brought the BOS."
        if not card["input_opens_with_special_tokens"]
        else "Rows are tokenized as the tokenizer does by itself."
    )
    labels = f"Labels, in order: {', '.join(card['labels'])}.\n" if card["labels"] else ""
    return (
        f"# {card['method']} for {card['model']}\n\n"
        f"Exported by sktune {card['sktune_version']} for {card['target']}; trained in {card['trained_in']}, task "
        f"{card['task']}.\n{labels}{opening} Pad on the right: on the left, tools other than sktune put padding "
        f"between the text and the input.\n\n{checked}\n\n```python\n{usage}\n```\n"
    )


def _same(replayed: dict[str, Any]) -> str:
    return f", {replayed['same_answers']:.1%} of the answers the same" if "same_answers" in replayed else ""
