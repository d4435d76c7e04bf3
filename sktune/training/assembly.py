"""From a recipe to everything a run is made of: tokenizer, rows, model, collator."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, set_seed

from sktune import __version__
from sktune.backbone import load_backbone, load_tokenizer
from sktune.backbone.architecture import is_encoder
from sktune.backbone.skeleton import read_config
from sktune.data import Coder, Collator, EncodedSplit, Example, RawSplits, Row, load_splits
from sktune.distributed.engine import State
from sktune.distributed.placement import placement_for
from sktune.distributed.ranks import Ranks
from sktune.files import ADAPTER_CARD, ADAPTER_WEIGHTS, RECIPE_FILE, whole, write_whole
from sktune.methods.method import Frame, build_method, reframed
from sktune.model.tuned_model import TunedModel, check_positions
from sktune.recipe import LoadedRecipe, Recipe
from sktune.tasks.task import Task, build_task
from sktune.training.sharding import Sharding, decide_sharding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """A run's parts, ready to be trained or evaluated."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    model: TunedModel
    labels: tuple[str, ...] | None
    collator: Collator
    raw: RawSplits | None
    sharding: Sharding
    task: Task
    """As this run's method puts it to the model."""

    def encode(self, examples: Sequence[Example], split: str, scoring: bool = False) -> EncodedSplit:
        """Rows of a split, encoded as this run's method and model read them."""
        backbone = self.model.backbone
        coder = Coder(
            self.tokenizer,
            self.recipe.data,
            # Where a text opens a decoder's sequence, it also brought the BOS.
            add_special_tokens=backbone.is_encoder or not self.recipe.method.opens_sequence,
            is_encoder=backbone.is_encoder,
            max_positions=backbone.max_positions,
        )
        return self.task.encode(examples, coder, self.labels, split, scoring=scoring)

    def encode_for_scoring(self, examples: Sequence[Example] | None, split: str) -> list[Row] | None:
        """Rows of an evaluation split, or None; what was noticed goes to the log."""
        if examples is None:
            return None
        encoded = self.encode(examples, split, scoring=True)
        for line in encoded.report:
            logger.info(line)
        return list(encoded.rows)


def assemble(recipe: Recipe, ranks: Ranks, labels: Sequence[str] | None = None, read_data: bool = True) -> Assembly:
    """Builds a run's parts; the data is read first, since its mistakes are the cheapest to find.

    Args:
        recipe: the checked recipe.
        ranks: this process.
        labels: the label set of a trained adapter; None takes it from the recipe or the training data.
        read_data: False for predicting on texts of the caller's own; training data is read all the same where the
            method shows some of it as demonstrations.

    Raises:
        ValueError: for whatever the user can correct.
    """
    raw, task = None, build_task(recipe.task)
    if read_data:
        raw = load_splits(recipe.data, task)
    elif recipe.method.needs_training_data:
        raw = load_splits(recipe.data.model_copy(update={"validation": None, "test": None}), task)
    for line in raw.report if raw is not None else ():
        logger.info(line)
    if labels is None and raw is not None:
        labels = raw.labels
    tokenizer = load_tokenizer(recipe.model)
    frame = Frame(
        recipe.data,
        tuple(labels or ()),
        tokenizer,
        raw.train if raw is not None else (),
        is_encoder=lambda: is_encoder(read_config(recipe.model)),
        seed=recipe.training.seed,
    )
    task = reframed(recipe.method, task, frame)  # before the model: its mistakes are cheap to find
    for line in task.report:
        logger.info(line)
    sharding = decide_sharding(recipe, ranks)
    backbone = load_backbone(
        recipe.model,
        recipe.quantization,
        language_model=recipe.needs_language_model,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        visible_prefix=recipe.method.visible_prefix,
        placement=placement_for(ranks, sharding.config, sharding.sharded),
    )
    set_seed(recipe.training.seed)  # the same adapter and head on every rank
    method = build_method(recipe.method, backbone, tokenizer, labels or ())
    model = TunedModel(backbone, method, task.head(backbone, len(labels) if labels is not None else 1))
    check_positions(recipe, backbone, method.positions)
    assert tokenizer.pad_token_id is not None
    collator = Collator(tokenizer.pad_token_id, recipe.data.padding_side, task)
    kept = None if labels is None else tuple(labels)
    return Assembly(recipe, tokenizer, model, kept, collator, raw, sharding, task)


def save_adapter(
    folder: Path,
    loaded: LoadedRecipe,
    weights: State,
    labels: Sequence[str] | None,
    metrics: dict[str, float],
) -> None:
    """Writes a trained adapter: weights, what they belong to, and the recipe that rebuilds the rest around them."""
    recipe = loaded.recipe
    with whole(folder / ADAPTER_WEIGHTS) as partial:
        save_file(weights, partial)
    card = {
        "sktune_version": __version__,
        "model": recipe.model.name_or_path,
        "method": recipe.method.name,
        "task": recipe.task.name,
        "labels": None if labels is None else list(labels),
        "trainable_parameters": sum(tensor.numel() for tensor in weights.values()),
        "metrics": metrics,
    }
    write_whole(folder / ADAPTER_CARD, json.dumps(card, indent=1, ensure_ascii=False))
    write_whole(folder / RECIPE_FILE, recipe_text(loaded))


def recipe_text(loaded: LoadedRecipe) -> str:
    """The recipe as YAML that loads again: overrides applied, `${NAME}` references left unread."""
    return yaml.safe_dump(loaded.as_written, sort_keys=False, allow_unicode=True)


def read_adapter(folder: Path) -> tuple[State, tuple[str, ...] | None]:
    """(weights, labels) of a saved adapter.

    Raises:
        ValueError: where the folder holds none, or a damaged one.
    """
    try:
        card = json.loads((folder / ADAPTER_CARD).read_text(encoding="utf-8"))
        labels = None if card["labels"] is None else tuple(card["labels"])
        return load_file(folder / ADAPTER_WEIGHTS), labels
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder}: no trained adapter can be read from it ({error})") from error
