"""Keeping what was trained from Python: the same folder that a recipe's run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune.errors import UserError
from sktune.files import ADAPTER_WEIGHTS
from sktune.model.adapter import read_card, read_weights, write_folder
from sktune.model.identity import IDENTITY, TOKENS, compare, drawn_tokens
from sktune.model.tuned_model import TunedModel, fold_centre, put_weights
from sktune.recipe.document import to_yaml
from sktune.recipe.environment import escape

if TYPE_CHECKING:
    from sktune.model.attached import AttachedModel


def label_names(labels: Sequence[str] | None, count: int | None) -> list[str] | None:
    """The labels' names, or transformers' names of numbers; None for a task without labels."""
    if labels is not None:
        return list(labels)
    return None if count is None else [f"LABEL_{number}" for number in range(count)]


UNKNOWN_DATA = "name-your-data"
"""Stands for `data.path` of an adapter that was trained on a caller's own batches."""


def save_adapter(model: AttachedModel, folder: str | Path) -> Path:
    """Writes what was trained into a folder, and returns it.

    The trained parameters (safetensors), a card of what they belong to, and a recipe that says which model, method and
    task they are of: `sktune.load(folder)` gives the model again, and `sktune predict` and `sktune evaluate` take the
    folder as they take a run's.
    """
    path = Path(folder)
    weights = {name: p.detach().cpu().clone() for name, p in model.trainable_parameters().items()}
    folded = fold_centre(weights | model.constants())
    labels = label_names(model.labels, model.num_labels)
    write_folder(
        path,
        folded,
        model=None if model.source is None else model.source.model,
        quantization=None if model.source is None else model.source.quantization,
        method=model.method.config,
        task=model.task,
        labels=labels,
        metrics={},
        belongs_to=model.belongs_to,
        recipe=to_yaml(escape(_recipe(model, path))),
    )
    return path


_TEMPLATES = ("text_template", "pair_template", "text_pair_column")
"""What of the section `data` says how a text is read."""


def _recipe(model: AttachedModel, folder: Path) -> dict[str, Any]:
    """The recipe that would make this model; its data, which are not known, are to be named where they are read."""
    source, task, method = model.source, model.task, model.method.config
    templates = model.data.model_dump(mode="json", exclude_unset=True, include=set(_TEMPLATES))
    sections: dict[str, Any] = {
        "model": {} if source is None else source.model.model_dump(mode="json", exclude_unset=True),
        "method": {**method.model_dump(mode="json", exclude_unset=True), "name": method.name},
        "task": {**task.model_dump(mode="json", exclude_unset=True), "name": task.name},
        "data": {"path": UNKNOWN_DATA, **task.columns_to_name, **templates},
        "distributed": {"deepspeed": None},
        "output": {"dir": str(folder)},
    }
    if source is not None and source.quantization.bits is not None:
        sections["quantization"] = source.quantization.model_dump(mode="json", exclude_unset=True)
    return sections


def load_adapter(model: AttachedModel, folder: str | Path) -> AttachedModel:
    """Puts saved parameters into a model attached the same way; returns it.

    Raises:
        UserError: where there are none, they do not fit, or method, text, task, labels, model or tokenizer differ
            from those they were saved with, each by name.
    """
    model.belongs_to = put_adapter(model, model.belongs_to, Path(folder))
    return model


def put_adapter(model: TunedModel, here: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Puts saved parameters into a model, and the tokens that were drawn for them; returns what they belong to.

    Args:
        model: of the same method and task.
        here: what its weights belong to, before.
        folder: of the adapter.

    Raises:
        UserError: as `load_adapter`.
    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS} here")
    saved = read_card(folder).get(IDENTITY) or {}
    drawn = drawn_tokens(model.method, saved)
    belongs_to = {**here, **({TOKENS: saved[TOKENS]} if drawn else {})}
    compare(saved, belongs_to, str(file))
    put_weights(model, read_weights(file), str(file))
    for text, ids in drawn.items():
        text.input_ids.copy_(ids)
    model.method.forget()
    return belongs_to
