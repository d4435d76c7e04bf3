"""The folder of a trained adapter: its weights, a card that says what they belong to, and the recipe around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sktune import __version__
from sktune.errors import UserError
from sktune.files import ADAPTER_CARD, ADAPTER_FOLDER, ADAPTER_WEIGHTS, RECIPE_FILE, whole, write_whole
from sktune.model.identity import IDENTITY
from sktune.recipe import LoadedRecipe


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> None:
    """Writes weights (fp32 tensors on the CPU, by parameter name) and the card, with sktune's version in it."""
    with whole(folder / ADAPTER_WEIGHTS) as partial:
        save_file(dict(weights), partial)
    text = json.dumps({"sktune_version": __version__, **card}, indent=1, ensure_ascii=False)
    write_whole(folder / ADAPTER_CARD, text)


def adapter_card(
    model: str | None,
    method: str,
    task: str,
    labels: Sequence[str] | None,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """What the card says of an adapter, wherever it was trained."""
    return {
        "model": model,
        "method": method,
        "task": task,
        "labels": None if labels is None else list(labels),
        "trainable_parameters": sum(tensor.numel() for tensor in weights.values()),
        "metrics": dict(metrics),
    }


def write_adapter(
    folder: Path,
    loaded: LoadedRecipe,
    weights: Mapping[str, torch.Tensor],
    labels: Sequence[str] | None,
    metrics: Mapping[str, float],
    belongs_to: Mapping[str, Any],
) -> None:
    """Writes what a run has trained, and the recipe that rebuilds the rest around it."""
    recipe = loaded.recipe
    card = adapter_card(recipe.model.name_or_path, recipe.method.name, recipe.task.name, labels, weights, metrics)
    write_weights(folder, weights, {**card, IDENTITY: dict(belongs_to)})
    write_whole(folder / RECIPE_FILE, loaded.text())


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter's folder; empty where there is none.

    Raises:
        UserError: where it is damaged.
    """
    file = folder / ADAPTER_CARD
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: this adapter card cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise UserError(f"{file}: this adapter card is not a JSON object")
    return card


def adapter_folder(output: Path) -> Path:
    """The adapter in a run's output folder, or the folder itself where it is one.

    Raises:
        UserError: where there is none.
    """
    for folder in (output / ADAPTER_FOLDER, output):
        if (folder / RECIPE_FILE).is_file() and (folder / ADAPTER_CARD).is_file():
            return folder
    raise UserError(f"{output}: no trained adapter here; give the output.dir of a finished run")


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None]:
    """(weights, labels) of an adapter that a run has written.

    Raises:
        UserError: where the folder holds none, or a damaged one.
    """
    try:
        card = json.loads((folder / ADAPTER_CARD).read_text(encoding="utf-8"))
        labels = None if card["labels"] is None else tuple(card["labels"])
        return load_file(folder / ADAPTER_WEIGHTS), labels
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: no trained adapter can be read from it ({error})") from error
