"""Exporting a run's adapter, and replaying examples through what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sktune import __version__
from sktune.errors import UserError
from sktune.export import TARGETS
from sktune.export.registering import register
from sktune.export.trained import Trained, Usage, read_trained
from sktune.files import write_whole
from sktune.model.adapter import adapter_folder, read_recipe
from sktune.recipe import Recipe

CARD, README = "export.json", "README.md"
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""By `model.dtype`; 4-bit SmolLM2 in bfloat16 differed by 0.055 from transformers' own reading of 16 sentences."""

_PRECISION = ("quantization", "model.dtype")


def export(
    run: Path,
    target: str,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    check: int | None = None,
    tolerance: float | None = None,
    register_as: str | None = None,
    server: str | None = None,
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
        server: address of a server that the examples are replayed through, for a target that needs one.
        register_as: a name in MLflow's registry that the folder becomes the next version of.

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
            through = {} if server is None else {"server": server}
            card["replayed"] = module.replay(trained, output, check, **through)
        write_whole(output / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        write_whole(output / README, _readme(trained, card, usage))
        if check:
            _refuse_difference(card["replayed"], trained, tolerance)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        if existed:
            output.mkdir()
        raise
    if register_as is not None:
        card["registered"] = f"{register_as}/{register(run, output, register_as, trained.recipe, overrides)}"
    return card


def _refuse_difference(replayed: dict[str, Any], trained: Trained, tolerance: float | None) -> None:
    accepted = TOLERANCES[trained.recipe.model.dtype] if tolerance is None else tolerance
    if not replayed["largest_difference"] <= accepted:
        raise UserError(
            f"--check: {replayed['what']} there differ by {replayed['largest_difference']:.2g} of the largest, more "
            f"than --tolerance {accepted:g}; nothing was kept"
        )


def _card(trained: Trained, target: str) -> dict[str, Any]:
    recipe = trained.recipe
    # Overrides say at which precision it is replayed.
    others = [given for given in trained.overrides if not given.startswith(_PRECISION)]
    own = read_recipe(adapter_folder(trained.folder), others, reads_data=False).recipe
    return {
        "sktune_version": __version__,
        "target": target,
        "method": recipe.method.name,
        "task": recipe.task.name,
        "labels": None if trained.setup.labels is None else list(trained.setup.labels),
        "model": recipe.model.name_or_path,
        "revision": recipe.model.revision,
        "trained_in": _precision(own),
        "read_in": _precision(recipe),
        "positions_in_front": trained.setup.model.method.positions,
        "input_opens_with_special_tokens": not recipe.method.opens_sequence,
        "padding_side": "right",
    }


def _precision(recipe: Recipe) -> str:
    return f"{recipe.quantization.bits} bits" if recipe.quantization.bits else recipe.model.dtype


def _readme(trained: Trained, card: dict[str, Any], usage: Usage) -> str:
    replayed = card.get("replayed")
    checked = (
        f"Replayed in {card['read_in']} on {replayed['examples']} test examples: {replayed['what']} within "
        f"{replayed['largest_difference']:.1e} of the largest{_same(replayed)}."
        if replayed
        else "Not replayed (`sktune export --check`)."
    )
    labels = f"Labels, in order: {', '.join(card['labels'])}.\n" if card["labels"] else ""
    return (
        f"# {card['method']} for {card['model']}\n\n"
        f"Exported by sktune {card['sktune_version']} for {card['target']}; trained in {card['trained_in']}, task "
        f"{card['task']}.\n{labels}{usage.note}\n\n{checked}\n\n```python\n{usage.code}\n```\n"
    )


def _same(replayed: dict[str, Any]) -> str:
    return f", {replayed['same_answers']:.1%} of the answers the same" if "same_answers" in replayed else ""
