"""The folder of a trained adapter: its weights, a card that says what they belong to, and the recipe around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sktune import __version__
from sktune.backbone.model_files import unreadable_safetensors
from sktune.errors import UserError
from sktune.files import (
    ADAPTER_CARD,
    ADAPTER_FOLDER,
    ADAPTER_README,
    ADAPTER_WEIGHTS,
    RECIPE_FILE,
    read_json,
    whole,
    write_whole,
)
from sktune.methods.config import MethodConfig
from sktune.model.identity import IDENTITY
from sktune.model.model_card import model_card
from sktune.recipe import LoadedRecipe, load_recipe_document
from sktune.recipe.document import read_document
from sktune.recipe.extending import KEY as EXTENDS
from sktune.sections import ModelSection, QuantizationSection
from sktune.tasks.config import TaskConfig

TRUST = "model.trust_remote_code"


def write_folder(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    model: ModelSection | None,
    quantization: QuantizationSection | None,
    method: MethodConfig,
    task: TaskConfig,
    labels: Sequence[str] | None,
    metrics: Mapping[str, float],
    belongs_to: Mapping[str, Any],
    recipe: str,
) -> None:
    """Writes an adapter's folder: weights, what they belong to for sktune and for a reader, and a recipe.

    Args:
        folder: made where it is not there.
        weights: fp32 tensors on the CPU, by parameter name.
        model: the frozen model; None where it has no name.
        quantization: of the frozen model.
        method: that was trained.
        task: that it was trained on.
        labels: their names in order; None of a task without.
        metrics: its scores.
        belongs_to: see `identity`.
        recipe: the recipe's file, as text.
    """
    with whole(folder / ADAPTER_WEIGHTS) as partial:
        save_file(dict(weights), partial)
    packed = quantization is not None and quantization.bits is not None
    card = {
        "sktune_version": __version__,
        "model": None if model is None else model.name_or_path,
        "revision": None if model is None else model.revision,
        "dtype": None if model is None else model.dtype,
        "quantization": quantization.model_dump(mode="json") if quantization is not None and packed else None,
        "method": method.name,
        "task": task.name,
        "labels": None if labels is None else list(labels),
        "trainable_parameters": sum(tensor.numel() for tensor in weights.values()),
        "metrics": dict(metrics),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        IDENTITY: dict(belongs_to),
    }
    write_whole(folder / ADAPTER_CARD, json.dumps(card, indent=1, ensure_ascii=False))
    write_whole(folder / ADAPTER_README, model_card(card, task, in_python=not method.answers_in_words))
    write_whole(folder / RECIPE_FILE, recipe)


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
    write_folder(
        folder,
        weights,
        model=recipe.model,
        quantization=recipe.quantization,
        method=recipe.method,
        task=recipe.task,
        labels=labels,
        metrics=metrics,
        belongs_to=belongs_to,
        recipe=loaded.whole_text(),
    )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter's folder; empty where there is none.

    Raises:
        UserError: where it is damaged.
    """
    file = folder / ADAPTER_CARD
    return read_json(file) if file.is_file() else {}


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
    card = read_card(folder)
    labels = card.get("labels")
    if "labels" not in card or not _are_labels(labels):
        raise UserError(
            f"{folder / ADAPTER_CARD}: labels must be null or a list of different texts; give the output.dir of a "
            "finished run"
        )
    return read_weights(folder / ADAPTER_WEIGHTS), None if labels is None else tuple(labels)


def _are_labels(labels: Any) -> bool:
    if labels is None:
        return True
    return isinstance(labels, list) and all(isinstance(x, str) for x in labels) and len(set(labels)) == len(labels) > 0


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Tensors that a run has trained, by parameter name.

    Raises:
        UserError: where there is no such file, it is damaged or no safetensors, or a number in it is not finite.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    try:
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"no trained adapter can be read: {unreadable_safetensors(file, error)}") from error
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{file}: the tensor {name} holds {tensor.dtype}, and what trains is float32")
        if broken := int((~torch.isfinite(tensor)).sum()):
            raise UserError(
                f"{file}: {broken} of {tensor.numel()} numbers of the tensor {name} are no finite numbers, so every "
                "answer would be meaningless; train again, or go back to an earlier checkpoint"
            )
    return weights


def refuse_other_files(file: Path) -> None:
    """Refuses an adapter's recipe that refers to others: what a folder holds is all that is read of it.

    Raises:
        UserError: naming the file.
    """
    if EXTENDS in read_document(file).mapping:
        raise UserError(f"{file}: an adapter's recipe is whole, and this one extends other files; they are not read")


def read_recipe(folder: Path, overrides: Sequence[str] = (), *, reads_data: bool = True) -> LoadedRecipe:
    """The recipe in an adapter's folder, changed by overrides of the caller's own.

    An adapter is data: its recipe alone makes no Python run that comes with a model (`model.trust_remote_code`), and it
    refers to no other file. Variables (`${NAME}`) that only training needed may be unset.

    Args:
        folder: of the adapter.
        overrides: `section.field=value` texts.
        reads_data: whether the data that the recipe names are read.

    Raises:
        UserError: for a recipe that is wrong, extends others, or asks for trust that no override gives.
    """
    file = folder / RECIPE_FILE
    refuse_other_files(file)
    unused = ("tracking.", "output.", *(() if reads_data else ("data.",)))
    loaded = load_recipe_document(file, overrides, unused)
    asked = any(override.partition("=")[0].strip() in ("model", TRUST) for override in overrides)
    if loaded.recipe.model.trust_remote_code and not asked:
        raise UserError(
            f"{TRUST}: {folder} asks to run code of {loaded.recipe.model.name_or_path!r}, and a folder is not trusted "
            f"with that; add {TRUST}=true if you trust the code, or =false"
        )
    return loaded
