"""What the engine allocates for what trains: DeepSpeed's ZeRO-3, its ZeRO-1 and -2, and plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from sktune.distributed.deepspeed_config import read_deepspeed_config, size_deepspeed_config
from sktune.distributed.optimizer import parameter_groups
from sktune.model.tuned_model import TunedModel
from sktune.recipe import DEEPSPEED_PRESETS, Recipe

FP32 = 4
"""Bytes; everything that trains is fp32."""
_ADAMW = 2
"""Temporaries of AdamW, in multiples of a group: the root of the second moment, and the step's denominator."""


class Engine(NamedTuple):
    """The engine of a run: ZeRO's stage (0: plain PyTorch), and what it allocates by.

    prefetch, persistence, max_live, max_reuse: of stage 3, in elements of the packed dtypes.
    buckets: bytes in which gradients are reduced.
    """

    stage: int = 0
    prefetch: int = 0
    persistence: int = 0
    max_live: int = 0
    max_reuse: int = 0
    buckets: int = 0
    parameters_on_host: bool = False
    optimizer_on_host: bool = False

    @property
    def sharded(self) -> bool:
        """Whether the ranks share the backbone."""
        return self.stage == 3

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
        UserError: for a DeepSpeed file that cannot be used.
    """
    name = recipe.distributed.deepspeed
    if name is None:
        return Engine()
    config = read_deepspeed_config(name)
    if config["zero_optimization"]["stage"] == 3 and not shard_backbone:
        name, config = "zero2", read_deepspeed_config("zero2")
    trainable = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    zero: dict[str, Any] = size_deepspeed_config(
        config, shipped=name in DEEPSPEED_PRESETS, training=recipe.training, backbone=model.backbone,
        trainable=trainable, ranks=ranks,
    )["zero_optimization"]  # fmt: skip
    stage = int(zero["stage"])
    # Stages 1 and 2 use two in turn where communication overlaps with backward.
    buckets = (2 if stage < 3 and zero.get("overlap_comm") else 1) if zero.get("contiguous_gradients", True) else 0
    return Engine(
        stage,
        int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        int(zero.get("stage3_param_persistence_threshold", 1e5)),
        int(zero.get("stage3_max_live_parameters", 1e9)),
        int(zero.get("stage3_max_reuse_distance", 1e9)),
        buckets * int(zero.get("reduce_bucket_size", 5e8)) * FP32,
        *((zero.get(f"offload_{what}") or {}).get("device", "none") != "none" for what in ("param", "optimizer")),
    )


class TrainedBytes(NamedTuple):
    """Bytes of one rank for what trains; on its GPU, but for `host`.

    weights, copies: the parameters themselves, or this rank's share; and what ZeRO keeps of them besides.
    gradients, gradients_of_a_step: allocated all the time; from backward to the update.
    moments, update: AdamW's, from the first update on (stages 1 and 2: from the start); temporaries of the update.
    host: in the CPU's memory, where the optimizer or the parameters are offloaded.
    """

    weights: int
    copies: int = 0
    gradients: int = 0
    gradients_of_a_step: int = 0
    moments: int = 0
    update: int = 0
    host: int = 0


def trained_bytes(engine: Engine, model: TunedModel, recipe: Recipe, ranks: int) -> TrainedBytes:
    """What adapter and head take on the rank that holds most."""
    grouped = parameter_groups(model.trainable_parameters(), recipe.training).values()
    groups = [[parameter.numel() for parameter in group] for group in grouped]
    if engine.stage == 0:
        whole = sum(map(sum, groups)) * FP32
        return TrainedBytes(whole, gradients_of_a_step=whole, moments=2 * whole, update=_ADAMW * whole)
    if engine.stage == 3:
        parts = [sum(math.ceil(size / ranks) for size in group) * FP32 for group in groups]
        part, update = sum(parts), (1 + _ADAMW) * max(parts, default=0)
        # What is gathered from is one flat buffer, what is updated another, although both are fp32: DeepSpeed compares
        # a device with its name to find out, and they are never the same (0.19.8).
        host = part if engine.parameters_on_host else 0
        if engine.optimizer_on_host:
            return TrainedBytes(part - host, host=host + 5 * part)
        return TrainedBytes(part - host, part, part, 0, 2 * part, update, host)
    padded = [math.ceil(sum(group) / (2 * ranks)) * 2 * ranks for group in groups]
    whole, part = sum(padded) * FP32, sum(padded) // ranks * FP32
    if engine.optimizer_on_host:
        return TrainedBytes(whole, host=4 * part)
    kept = sum(_most_in_a_part(group, size // ranks, ranks) for group, size in zip(groups, padded, strict=True))
    return TrainedBytes(whole, part, 0, kept * FP32, 2 * part, (1 + _ADAMW) * max(padded, default=0) // ranks * FP32)


def _most_in_a_part(sizes: Sequence[int], part: int, ranks: int) -> int:
    """Elements of the parameters that reach into one rank's part of the flat group, of the rank that has most."""
    spans = [(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    held = [[b - a for a, b in spans if a < (rank + 1) * part and b > rank * part] for rank in range(ranks)]
    return max(map(sum, held))
