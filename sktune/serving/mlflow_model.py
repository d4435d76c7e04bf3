"""An adapter as MLflow loads it: `mlflow.pyfunc.load_model`, `mlflow models serve`, `mlflow.models.evaluate`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.serving.adapters import Shelf
from sktune.serving.reading import ask, batches, read
from sktune.tracking.model_folder import COLUMN, OVERRIDES, TEXT, TEXT_PAIR

if TYPE_CHECKING:
    import pandas


class Model:
    """One adapter on its frozen model.

    Args:
        folder: of the adapter.
        overrides: changes of its recipe.
        column: the part of answers to give; None: all of them.
    """

    def __init__(self, folder: Path, overrides: Sequence[str], column: str | None = None) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._shelf = Shelf({"model": folder}, Ranks(0, 0, 1, device, launched=False), overrides)
        self._column = column
        self._in_turn = threading.Lock()

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pandas.DataFrame | pandas.Series:
        """What the task shows of each row, in order, a column for each part of an answer; or that one column.

        Args:
            data: a table with the column `text`, and `text_pair` where the adapter reads pairs; tagged words are
                separated by blanks. Or a list of texts.
            params: none is known.

        Raises:
            UserError: for other columns, and what this adapter does not read.
        """
        import pandas

        table = data if isinstance(data, pandas.DataFrame) else pandas.DataFrame({TEXT: list(data)})
        if TEXT not in table.columns:
            raise UserError(f"the column {TEXT!r} is missing; there are: {', '.join(map(str, table.columns))}")
        served = self._shelf["model"]
        pairs = list(table[TEXT_PAIR]) if TEXT_PAIR in table.columns else [None] * len(table)
        with self._in_turn:
            items = [
                ask(self._shelf, served, text, pair, f"row {number}", None)
                for number, (text, pair) in enumerate(zip(table[TEXT], pairs, strict=True))
            ]
            found: list[dict[str, Any]] = [{}] * len(items)
            for numbers in batches(items, served.setup.recipe.training.per_device_eval_batch_size):
                for number, shown in zip(numbers, read(self._shelf, [items[n] for n in numbers]), strict=True):
                    found[number] = shown
        answers = pandas.DataFrame(found, index=table.index)
        if self._column is None:
            return answers
        if self._column not in answers.columns:
            raise UserError(
                f"{COLUMN}: {self._column!r} is no part of an answer; there are: {', '.join(answers.columns)}"
            )
        return answers[self._column]


def _load_pyfunc(folder: str, model_config: Mapping[str, Any] | None = None) -> Model:
    """What MLflow calls.

    Args:
        folder: of the adapter, in the model's.
        model_config: `overrides` of its recipe, and `column`; see `Model`.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = model_config or {}
    return Model(Path(folder), list(config.get(OVERRIDES, ())), config.get(COLUMN))
