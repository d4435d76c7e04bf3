"""The MLflow run of a training run: its name, its tags, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path

from sktune.distributed.ranks import Ranks
from sktune.errors import named_line
from sktune.recipe import LoadedRecipe, Recipe
from sktune.tracking import Tracker, names, start_tracking
from sktune.training import stopping


def bits_name(recipe: Recipe) -> str:
    """`4bit`, `8bit`, or the backbone's dtype."""
    return f"{recipe.quantization.bits}bit" if recipe.quantization.bits else recipe.model.dtype


def run_name(recipe: Recipe) -> str:
    """method-model-bits-seed, as the MLflow table shows it."""
    model = recipe.model.name_or_path.rstrip("/").rsplit("/", 1)[-1].removeprefix("embedded:")
    return f"{recipe.method.name}-{model}-{bits_name(recipe)}-seed{recipe.training.seed}"


def run_tags(recipe: Recipe, ranks: Ranks) -> dict[str, str]:
    """Tags to filter and group runs by."""
    return {
        names.METHOD_TAG: recipe.method.name,
        names.MODEL_TAG: recipe.model.name_or_path,
        names.TASK_TAG: recipe.task.name,
        names.DATA_TAG: recipe.data.path if recipe.data.name is None else f"{recipe.data.path}/{recipe.data.name}",
        names.QUANTIZATION_TAG: bits_name(recipe),
        names.SEED_TAG: str(recipe.training.seed),
        names.DEEPSPEED_TAG: str(recipe.distributed.deepspeed) if ranks.launched else "none",
        names.RANKS_TAG: str(ranks.world_size),
        names.DEVICE_TAG: ranks.device.type,
    }


def description(loaded: LoadedRecipe) -> dict[str, str]:
    """The tag that MLflow shows as the run's description: the comment that opens the recipe's file."""
    try:
        lines = loaded.source.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    header = list(takewhile(lambda line: line.startswith("#"), lines))
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in header).strip()
    return {names.DESCRIPTION_TAG: text} if text else {}


@contextmanager
def tracked(loaded: LoadedRecipe, ranks: Ranks, run_id: str | None, tags: Mapping[str, str]) -> Iterator[Tracker]:
    """Starts the run's tracking, or continues that of `run_id`; see `ended`.

    Raises:
        UserError: on all ranks, where the tracking URI cannot be used.
    """
    start = partial(
        start_tracking,
        loaded.recipe.tracking,
        recipe_params=loaded.loggable(),
        tags={**run_tags(loaded.recipe, ranks), **description(loaded), **tags},
        run_name=run_name(loaded.recipe),
        run_id=run_id,
        output_dir=Path(loaded.recipe.output.dir),
        is_main=ranks.is_main,
    )
    tracker = ranks.on_main(start) or start()
    with ended(tracker):
        yield tracker


@contextmanager
def ended(tracker: Tracker) -> Iterator[None]:
    """Ends the run FAILED or KILLED where what is inside raises; where it does not, it has to say FINISHED itself."""
    try:
        yield
    except BaseException as error:
        # When one rank fails, the launcher terminates the others: the main one still has to say so to MLflow.
        with stopping.deferred(late=False):
            killed = bool(stopping.requested()) or isinstance(error, KeyboardInterrupt | SystemExit)
            tracker.finish("KILLED" if killed else "FAILED", named_line(error))
        raise
