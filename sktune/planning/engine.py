"""What the engine allocates for what trains: DeepSpeed's ZeRO-3, its ZeRO-1 and -2, and plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sktune.optimization.deepspeed_config import read_deepspeed_config, size_deepspeed_config
from sktune.optimization.optimizer import build_optimizer
from sktune.planning.gathering import Thresholds
from sktune.recipe import DEEPSPEED_PRESETS, Recipe
from sktune.tasks import TunedModel

FP32 = 4
"""Bytes; everything that trains is fp32."""


@dataclass(frozen=True)
class Engine:
    """The engine of a run.

    stage: ZeRO's; 0 for plain PyTorch.
    sharded: the backbone is shared among the ranks.
    parameters_on_host, optimizer_on_host: offloaded to the CPU's memory.
    """

    stage: int
    sharded: bool
    thresholds: Thresholds
    bucket: int = 0
    buckets: int = 0
    parameters_on_host: bool = False
    optimizer_on_host: bool = False

    @property
    def name(self) -> str:
        """For people."""
        if self.stage == 0:
            return "without DeepSpeed"
        offload = " with offloading" if self.parameters_on_host or self.optimizer_on_host else ""
        return f"ZeRO-{self.stage}{offload}, backbone {'shared' if self.sharded else 'replicated'}"


def engine_of(recipe: Recipe, model: TunedModel, shard_backbone: bool, ranks: int) -> Engine:
    """The engine that training would build; `model` on the meta device.

    Raises:
        ValueError: for a DeepSpeed file that cannot be used.
    """
    name = recipe.distributed.deepspeed
    if name is None:
        return Engine(0, False, Thresholds(0, 0, 0, 0))
    config = read_deepspeed_config(name)
    if config["zero_optimization"]["stage"] == 3 and not shard_backbone:
        name, config = "zero2", read_deepspeed_config("zero2")
    sized = size_deepspeed_config(
        config,
        shipped=name in DEEPSPEED_PRESETS,
        training=recipe.training,
        backbone=model.backbone,
        trainable=sum(parameter.numel() for parameter in model.trainable_parameters().values()),
        ranks=ranks,
    )
    zero: dict[str, Any] = sized["zero_optimization"]
    stage = int(zero["stage"])
    thresholds = Thresholds(
        int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        int(zero.get("stage3_param_persistence_threshold", 1e5)),
        int(zero.get("stage3_max_live_parameters", 1e9)),
        int(zero.get("stage3_max_reuse_distance", 1e9)),
    )
    contiguous = zero.get("contiguous_gradients", True)
    return Engine(
        stage,
        stage == 3,
        thresholds,
        bucket=int(zero.get("reduce_bucket_size", 5e8)),
        # Stages 1 and 2 use two in turn where communication overlaps with backward.
        buckets=int(contiguous) * (2 if stage < 3 and zero.get("overlap_comm") else 1),
        parameters_on_host=_is_offloaded(zero, "offload_param"),
        optimizer_on_host=_is_offloaded(zero, "offload_optimizer"),
    )


def _is_offloaded(zero: Mapping[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"


@dataclass(frozen=True)
class TrainedBytes:
    """Bytes of one rank for what trains; on its GPU, but for `host`.

    weights: the parameters themselves, or this rank's share.
    copies: of the weights, that ZeRO keeps besides.
    gradients: buffers that stay allocated all the time.
    gradients_of_a_step: from backward to the update.
    buckets: in which gradients are reduced; of stages 1 and 2 only during backward.
    moments: AdamW's, from the first update on (stages 1 and 2: from the start).
    update: temporaries of the update.
    host: in the CPU's memory, where the optimizer or the parameters are offloaded.
    """

    weights: int
    copies: int
    gradients: int
    gradients_of_a_step: int
    buckets: int
    moments: int
    update: int
    host: int = 0


def trained_bytes(engine: Engine, model: TunedModel, recipe: Recipe, ranks: int) -> TrainedBytes:
    """What adapter and head take on the rank that holds most."""
    optimizer = build_optimizer(model.trainable_parameters(), recipe.training)
    groups = [[p.numel() for p in group["params"]] for group in (optimizer.param_groups if optimizer else ())]
    buckets = engine.bucket * engine.buckets * FP32
    if engine.stage == 3:
        parts = [sum(math.ceil(size / ranks) for size in group) * FP32 for group in groups]
        return _stage_3(engine, sum(parts), max(parts, default=0), buckets)
    whole = sum(map(sum, groups)) * FP32
    if engine.stage == 0:
        flat = whole if ranks > 1 else 0
        return TrainedBytes(whole, 0, 0, whole, 0, 2 * whole, max(flat, _ADAMW * whole))
    padded = [math.ceil(sum(group) / (2 * ranks)) * 2 * ranks for group in groups]
    part = sum(padded) // ranks * FP32
    kept = sum(_most_in_a_part(group, size // ranks, ranks) for group, size in zip(groups, padded, strict=True)) * FP32
    update = (1 + _ADAMW) * max(padded, default=0) // ranks * FP32
    if engine.optimizer_on_host:
        return TrainedBytes(sum(padded) * FP32, 0, 0, 0, buckets, 0, 0, host=4 * part)
    return TrainedBytes(sum(padded) * FP32, part, 0, kept, buckets, 2 * part, update)


_ADAMW = 2
"""Temporaries of AdamW, in multiples of a group: the root of the second moment, and the step's denominator."""


def _stage_3(engine: Engine, part: int, largest: int, buckets: int) -> TrainedBytes:
    # What is gathered from is one flat buffer, what is updated another, although both are fp32: DeepSpeed compares a
    # device with its name to find out, and they are never the same (0.19.8).
    weights = 0 if engine.parameters_on_host else part
    host = part - weights
    if engine.optimizer_on_host:
        return TrainedBytes(weights, 0, 0, 0, buckets, 0, 0, host=host + 5 * part)
    return TrainedBytes(weights, part, part, 0, buckets, 2 * part, (1 + _ADAMW) * largest, host=host)


def _most_in_a_part(sizes: Sequence[int], part: int, ranks: int) -> int:
    """Elements of the parameters that reach into one rank's part of the flat group, of the rank that has most."""
    most = 0
    for rank in range(ranks):
        start, reached = 0, 0
        for size in sizes:
            if start < (rank + 1) * part and start + size > rank * part:
                reached += size
            start += size
        most = max(most, reached)
    return most
