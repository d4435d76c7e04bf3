"""A trained adapter as a model of MLflow's: its files, how to load it, what goes in and what comes out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sktune import __version__
from sktune.recipe import Recipe

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "sktune.serving.mlflow_model"
"""The module that MLflow loads the folder with."""
OVERRIDES, COLUMN = "overrides", "column"
"""Keys of the model's configuration, which `mlflow.pyfunc.load_model(..., model_config=...)` can change: of the recipe,
and the one part of an answer that is given (`label`, say, for evaluators that know of one column only)."""
TEXT, TEXT_PAIR = "text", "text_pair"
"""Columns of what the model is asked."""
GENERATED = "generated"


def write_model_folder(folder: Path, adapter: Path, recipe: Recipe, overrides: Sequence[str] = ()) -> None:
    """Writes what `mlflow.pyfunc.load_model` reads; a folder of the same name is replaced.

    The frozen model is not in it: it is loaded as the recipe names it, a local folder by its absolute path.

    Args:
        folder: to be written.
        adapter: of the adapter, which is copied.
        recipe: that it was trained with, changed by the overrides.
        overrides: `section.field=value` texts that the model is loaded with.
    """
    import mlflow.pyfunc
    import pandas

    asked, signature = _example(recipe)
    whole = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(whole, ignore_errors=True)
    quiet = logging.getLogger("mlflow.pyfunc")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        mlflow.pyfunc.save_model(
            str(whole),
            loader_module=LOADER,
            data_path=str(adapter),
            signature=signature,
            input_example=pandas.DataFrame([asked]),
            pip_requirements=[f"sktune=={__version__}"],
            model_config={OVERRIDES: [*_absolute(recipe), *overrides], COLUMN: None},
            metadata={"model": recipe.model.name_or_path, "revision": recipe.model.revision},
        )
    finally:
        quiet.setLevel(level)
    shutil.rmtree(folder, ignore_errors=True)
    whole.rename(folder)


def _absolute(recipe: Recipe) -> list[str]:
    """Overrides that say where local models are, wherever the reader stands."""
    given = {"model.name_or_path": recipe.model.name_or_path, "model.tokenizer": recipe.model.tokenizer}
    return [f"{field}={Path(value).resolve()}" for field, value in given.items() if value and Path(value).exists()]


def _example(recipe: Recipe) -> tuple[dict[str, str], ModelSignature]:
    """A question in columns, and the schema of questions and answers.

    The question is one of sktune's own: no text of the data leaves the machine with a model.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    task = recipe.task
    examples = [(asked, shown) for asked, shown in task.shown_as if (GENERATED in shown) == bool(task.new_tokens)]
    asked, shown = examples[0] if examples else ({TEXT: "a text"}, None)
    paired = recipe.data.text_pair_column is not None
    columns = {TEXT: asked[TEXT], **({TEXT_PAIR: asked.get(TEXT_PAIR, "another text")} if paired else {})}
    inputs = Schema([ColSpec(DataType.string, name) for name in columns])
    outputs = None if shown is None else Schema([ColSpec(_kind(value), name) for name, value in shown.items()])
    return columns, ModelSignature(inputs, outputs)


def _kind(value: Any) -> Any:
    """The type, in MLflow's words, of a part of an answer."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Map, Object, Property

    if isinstance(value, str):
        return DataType.string
    if isinstance(value, int | float):
        return DataType.long if isinstance(value, int) else DataType.double
    if isinstance(value, Mapping):
        # Labels and their probabilities: whatever the labels are.
        if all(isinstance(item, float) for item in value.values()):
            return Map(DataType.double)
        return Object([Property(name, _kind(item)) for name, item in value.items()])
    assert isinstance(value, Sequence) and value
    return Array(_kind(value[0]))
