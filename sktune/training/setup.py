"""From a recipe to everything a run is made of: data, tokenizer, placement, model, engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase, set_seed

from sktune.backbone import Backbone, load_backbone, load_tokenizer
from sktune.backbone.architecture import is_encoder
from sktune.backbone.skeleton import read_config
from sktune.backbone.vocabulary import check_tokens, padding_token
from sktune.data import Coder, Collator, EncodedSplit, Example, RawSplits, Row, load_for_evaluation, load_splits
from sktune.distributed.deepspeed_config import size_deepspeed_config
from sktune.distributed.deepspeed_engine import DeepSpeedEngine
from sktune.distributed.engine import Engine
from sktune.distributed.optimizer import build_optimizer
from sktune.distributed.placement import placement_for
from sktune.distributed.plain_engine import PlainEngine
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.methods.method import Frame, build_method, reframed
from sktune.model.identity import identity
from sktune.model.step_zero import check_step_zero
from sktune.model.tuned_model import TunedModel, check_positions
from sktune.recipe import Recipe
from sktune.tasks.heads import LabelWordHead
from sktune.tasks.task import Task, build_task
from sktune.training.sharding import Sharding, decide_sharding

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


class Frozen(NamedTuple):
    """What the adapters of one model have in common."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Setup:
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

    @property
    def metric(self) -> str:
        """The validation metric that the best checkpoint is chosen by."""
        return self.recipe.training.metric_for_best_model or self.recipe.task.metrics()[0]

    def belongs_to(self) -> dict[str, Any]:
        """What the trained weights belong to, as an adapter's card says it."""
        model, task = self.model, self.recipe.task
        count = len(self.labels) if self.labels is not None and task.has_head else None
        return identity(model.backbone, self.tokenizer, model.method, task, count, self.labels)

    def encode(self, examples: Sequence[Example], split: str, scoring: bool = False) -> EncodedSplit:
        """Rows of a split (or of what messages are to call otherwise), encoded as this method and model read them."""
        backbone = self.model.backbone
        coder = coder_of(self.recipe, self.tokenizer, backbone.is_encoder, backbone.max_positions)
        encoded = self.task.encode(examples, coder, self.labels, split, scoring=scoring)
        texts = (row.input_ids for row in encoded.rows)
        check_tokens(
            self.tokenizer,
            backbone.vocabulary_size,
            texts,
            f"a text of the {split} split" if split in SPLITS else split,
        )
        return encoded

    def encode_for_scoring(self, examples: Sequence[Example] | None, split: str) -> list[Row] | None:
        """Rows of an evaluation split, or None; what was noticed goes to the log."""
        if examples is None:
            return None
        return _rows(self.encode(examples, split, scoring=True))

    def training_rows(self) -> list[Row] | None:
        """Rows of the training split, or None where nothing trains; what was noticed goes to the log."""
        assert self.raw is not None
        return _rows(self.encode(self.raw.train, "train")) if self.model.trainable_parameters() else None


def _rows(encoded: EncodedSplit) -> list[Row]:
    for line in encoded.report:
        logger.info(line)
    return list(encoded.rows)


def prepare(
    recipe: Recipe,
    ranks: Ranks,
    labels: Sequence[str] | None = None,
    read_data: bool = True,
    scored: str | None = None,
    for_training: bool = False,
    frozen: Frozen | None = None,
) -> Setup:
    """Builds a run's parts; the data is read first, since its mistakes are the cheapest to find.

    Args:
        recipe: the checked recipe.
        ranks: this process.
        labels: the label set of a trained adapter; None takes it from the recipe or the training data.
        read_data: False for predicting on texts of the caller's own; training data is read all the same where the
            method shows some of it as demonstrations.
        scored: the one split that a trained adapter is to be scored on; what else the recipe names is not read then.
        for_training: leaves the frozen blocks out where `training.stream_frozen_blocks` says so.
        frozen: a frozen model that is there already, of which the recipe's adapter is another one.

    Raises:
        UserError: for whatever the user can correct.
    """
    raw: RawSplits | None = None
    shown: Sequence[Example] = ()
    task = build_task(recipe.task)
    if scored is not None:
        raw = load_for_evaluation(recipe.data, task, scored, labels)
    elif read_data:
        raw = load_splits(recipe.data, task)
    if recipe.method.needs_training_data and (scored is not None or raw is None):
        demonstrated = load_splits(recipe.data.model_copy(update={"validation": None, "test": None}), task)
        raw, shown = raw or demonstrated, demonstrated.train
    elif raw is not None:
        shown = raw.train
    for line in raw.report if raw is not None else ():
        logger.info(line)
    if labels is None and raw is not None:
        labels = raw.labels
        _check_metric(recipe, labels)
    tokenizer = load_tokenizer(recipe.model) if frozen is None else frozen.tokenizer
    # Before the model: its mistakes are cheap to find.
    task = task_of_method(recipe, task, tokenizer, labels, shown)
    for line in task.report:
        logger.info(line)
    sharding = decide_sharding(recipe, ranks)
    backbone = (
        frozen.backbone
        if frozen is not None
        else load_backbone(
            recipe.model,
            recipe.quantization,
            language_model=recipe.needs_language_model,
            gradient_checkpointing=recipe.training.gradient_checkpointing,
            visible_prefix=recipe.method.visible_prefix,
            placement=placement_for(ranks, sharding.config, sharding.sharded),
            left_out=_blocks_to_stream(recipe) if for_training else 0,
        )
    )
    set_seed(recipe.training.seed)  # the same adapter and head on every rank
    method = build_method(recipe.method, backbone, tokenizer, labels or ())
    model = TunedModel(backbone, method, task.head(backbone, len(labels) if labels is not None else 1))
    if isinstance(model.head, LabelWordHead):
        check_tokens(tokenizer, backbone.vocabulary_size, [model.head.tokens.tolist()], "a label's word")
    check_positions(recipe, backbone, method.positions)
    collator = Collator(padding_token(tokenizer, backbone.vocabulary_size), recipe.data.padding_side, task)
    kept = None if labels is None else tuple(labels)
    return Setup(recipe, tokenizer, model, kept, collator, raw, sharding, task)


def try_step_zero(setup: Setup, engine: Engine, ranks: Ranks) -> None:
    """Where the recipe does not leave it out: holds the method, at its start, against the plain model; on all ranks.

    Raises:
        UserError: on all ranks, where they differ.
    """
    data = setup.recipe.data
    if setup.model.backbone.left_out:
        logger.info("step zero: not checked, as training.stream_frozen_blocks never has all blocks in memory")
    elif setup.recipe.model.check_step_zero:
        engine.set_training(False)
        check_step_zero(
            setup.model,
            setup.tokenizer,
            ranks.device,
            max_length=data.max_length,
            padding_side=data.padding_side,
            run=engine,
            worst=lambda value: max(ranks.gather(value)),
        )
        engine.set_training(True)


def _blocks_to_stream(recipe: Recipe) -> int:
    if not recipe.training.stream_frozen_blocks:
        return 0
    return recipe.method.frozen_blocks(read_config(recipe.model).num_hidden_layers)


def _check_metric(recipe: Recipe, labels: Sequence[str] | None) -> None:
    """Refuses to choose the best checkpoint by a metric that there is not with the labels of the training data."""
    metric = recipe.training.metric_for_best_model
    if metric is None or labels is None:
        return
    known = recipe.task.model_copy(update={"labels": tuple(labels)}).metrics()
    if metric not in known:
        raise UserError(
            f"training.metric_for_best_model: there is no {metric} of {len(labels)} labels; allowed: {', '.join(known)}"
        )


def coder_of(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, is_encoder: bool, max_positions: int | None = None
) -> Coder:
    """How a recipe's texts become tokens, for a model of this kind."""
    # Where a text opens a decoder's sequence, it also brought the BOS.
    special = is_encoder or not recipe.method.opens_sequence
    return Coder(tokenizer, recipe.data, special, is_encoder, max_positions)


def task_of_method(
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str] | None,
    train: Sequence[Example],
) -> Task:
    """The recipe's task as its method puts it to the model; `train`: what demonstrations are chosen from.

    Raises:
        UserError: for a template or words that the task, the tokenizer or the model does not suit.
    """
    frame = Frame(
        recipe.data,
        tuple(labels or ()),
        tokenizer,
        train,
        is_encoder=lambda: is_encoder(read_config(recipe.model)),
        seed=recipe.training.seed,
    )
    return reframed(recipe.method, task, frame)


def build_engine(setup: Setup, ranks: Ranks) -> tuple[Engine, dict[str, Any] | None]:
    """The engine the recipe asks for, and its DeepSpeed configuration (None for plain PyTorch)."""
    training, model, sharding = setup.recipe.training, setup.model, setup.sharding
    parameters = model.trainable_parameters()
    optimizer = build_optimizer(parameters, training)
    for part in model.children():
        if part is not model.backbone:  # it is there already, whole or in shares
            part.to(ranks.device)
    # Without an optimizer there is nothing for ZeRO-1 and -2 to share.
    if sharding.config is None or (optimizer is None and not sharding.sharded):
        return PlainEngine(model, optimizer, training.max_grad_norm, ranks), None
    config = size_deepspeed_config(
        sharding.config,
        shipped=sharding.shipped,
        training=training,
        backbone=model.backbone,
        trainable=sum(p.numel() for p in parameters.values()),
        ranks=ranks.world_size,
    )
    return DeepSpeedEngine(model, optimizer, config, ranks), config
