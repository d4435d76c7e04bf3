"""Using a trained adapter: the model as it was trained, and scores of a split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sktune.data import Example
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import EVALUATION_FOLDER, write_whole
from sktune.model.adapter import adapter_folder, read_adapter, read_recipe
from sktune.model.tuned_model import put_weights
from sktune.recipe import LoadedRecipe
from sktune.training.evaluate import evaluate
from sktune.training.output import kept_folder
from sktune.training.report import write_predictions
from sktune.training.setup import SPLITS, Setup, build_engine, prepare


def load_trained(
    output: Path, ranks: Ranks, overrides: Sequence[str] = (), scored: str | None = None
) -> tuple[LoadedRecipe, Setup]:
    """Rebuilds a trained model from its output folder; overrides change the recipe it was trained with.

    `scored` names the split to read; None reads no data that is to be answered.
    """
    folder = adapter_folder(output)
    loaded = read_recipe(folder, overrides, reads_data=scored is not None)
    weights, labels = read_adapter(folder)
    setup = prepare(loaded.recipe, ranks, labels=labels, read_data=False, scored=scored)
    put_weights(setup.model, weights, str(folder))
    return loaded, setup


def evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a trained adapter on a split of its data; writes `evaluation/<split>.json` and the predictions.

    The folder is kept to this command meanwhile.

    Returns:
        The metrics, and `per_type` for token classification.

    Raises:
        UserError: for an unknown split, one that the recipe does not name, or a folder in use.
    """
    if split not in SPLITS:
        raise UserError(f"--split: {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    adapter_folder(output)
    with kept_folder(output, ranks):
        return _evaluate_run(output, split, ranks, overrides)


def _evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str]) -> dict[str, Any]:
    _, setup = load_trained(output, ranks, overrides, scored=split)
    assert setup.raw is not None
    engine, _ = build_engine(setup, ranks)
    return score(setup, engine, getattr(setup.raw, split), split, ranks, output / EVALUATION_FOLDER / split)


def score(
    setup: Setup,
    engine: Engine,
    examples: Sequence[Example],
    split: str,
    ranks: Ranks,
    place: Path,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores examples and writes the result, `<place>.json`, and the predictions; collective.

    Args:
        setup: of a trained adapter.
        engine: runs its model.
        examples: of a split.
        split: its name, for what is logged.
        ranks: share the rows.
        place: of the files, without an ending.
        about: what the result says besides its metrics, before them.

    Returns:
        The result: `about`, the metrics, and `per_type` where there are types.
    """
    rows = setup.encode_for_scoring(examples, split)
    assert rows is not None
    scores = evaluate(setup, engine, rows, ranks)
    result = {**(about or {}), **scores.metrics, **({"per_type": scores.per_type} if scores.per_type else {})}
    if ranks.is_main:
        write_predictions(scores, examples, place.with_name(f"{place.name}.predictions.jsonl"))
        write_whole(place.with_name(f"{place.name}.json"), json.dumps(result, indent=1))
    ranks.barrier()
    return result
