"""The output folder of a run: what lies in it, and who may write there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sktune.recipe import LoadedRecipe, flatten, load_recipe_document
from sktune.training.assembly import recipe_text
from sktune.training.checkpoint import FOLDER as CHECKPOINTS
from sktune.training.checkpoint import latest_checkpoint
from sktune.training.ranks import Ranks

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
SUMMARY_FILE = "summary.json"
DEEPSPEED_FILE = "deepspeed.json"
ADAPTER_FOLDER = "adapter"
PREDICTIONS_FOLDER = "predictions"
FIGURES_FOLDER = "figures"
EVALUATION_FOLDER = "evaluation"
# A resumed run may change these; anything else would make it another run.
CHANGEABLE_ON_RESUME = ("training.", "distributed.", "tracking.", "output.", "data.max_validation", "data.max_test")


def claim_output(loaded: LoadedRecipe, output_dir: Path, ranks: Ranks) -> Path | None:
    """Makes the output folder ready for a run; one rank decides for all.

    Returns:
        The checkpoint to resume from, or None for a run that starts anew.

    Raises:
        ValueError: where the folder holds a run that this one neither continues nor may replace.
    """
    return ranks.broadcast(ranks.on_main(lambda: _claim(loaded, output_dir)))


def _claim(loaded: LoadedRecipe, output_dir: Path) -> Path | None:
    recipe = loaded.recipe
    used = (output_dir / RECIPE_FILE).exists()
    checkpoint = latest_checkpoint(output_dir) if recipe.training.resume == "auto" else None
    if used and checkpoint is None and not recipe.output.overwrite and recipe.training.resume != "auto":
        raise ValueError(
            f"output.dir: {output_dir} already holds a run; continue it with training.resume=auto (--resume), "
            "start anew with output.overwrite=true, or choose another folder"
        )
    if checkpoint is not None:
        _check_same_run(loaded, output_dir / RECIPE_FILE)
    elif used:
        for name in (CHECKPOINTS, ADAPTER_FOLDER, PREDICTIONS_FOLDER, FIGURES_FOLDER, EVALUATION_FOLDER, "tracking"):
            shutil.rmtree(output_dir / name, ignore_errors=True)
        for name in ("metrics.jsonl", SUMMARY_FILE, DEEPSPEED_FILE):
            (output_dir / name).unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / RECIPE_FILE).write_text(recipe_text(loaded), encoding="utf-8")
    return checkpoint


def _check_same_run(loaded: LoadedRecipe, earlier_file: Path) -> None:
    earlier = flatten(load_recipe_document(earlier_file).loggable())
    now = flatten(loaded.loggable())
    changed = {
        key: (earlier.get(key), now.get(key))
        for key in {*earlier, *now}
        if earlier.get(key) != now.get(key) and key != "training.resume"
    }
    refused = sorted(key for key in changed if key == "training.seed" or not key.startswith(CHANGEABLE_ON_RESUME))
    if refused:
        listed = "; ".join(f"{key} was {changed[key][0]!r} and is {changed[key][1]!r}" for key in refused)
        raise ValueError(
            f"training.resume: the run in {earlier_file.parent} was another one: {listed}; change it back, or use "
            "another output.dir"
        )
    for key in sorted(changed):
        logger.warning("resuming with a changed %s: was %r, is %r", key, *changed[key])
