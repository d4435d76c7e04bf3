"""Whether ZeRO-3 shards the backbone among the ranks, or each has its own copy: a decision of all ranks together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from sktune.distributed.deepspeed_config import read_deepspeed_config
from sktune.distributed.ranks import Ranks
from sktune.recipe import DEEPSPEED_PRESETS, Recipe


@dataclass(frozen=True)
class Sharding:
    """What was decided, and why."""

    sharded: bool
    reason: str
    config: dict[str, Any] | None = None
    """The DeepSpeed configuration as read, not yet sized; None: plain PyTorch."""
    shipped: bool = False
    """Whether the configuration is one of sktune's own, whose thresholds are sized for the model."""


def decide_sharding(recipe: Recipe, ranks: Ranks) -> Sharding:
    """Reads the DeepSpeed configuration and decides; collective.

    Raises:
        UserError: for a configuration that cannot be used.
    """
    name = recipe.distributed.deepspeed
    if name is None:
        return Sharding(False, "the recipe wants no DeepSpeed: each rank has its own copy of the backbone")
    if not ranks.launched:
        return Sharding(
            False,
            f"one process was started directly; for {name} start it with "
            "`deepspeed --num_gpus N launchers/train.py --recipe ...`",
        )
    config, shipped = read_deepspeed_config(name), name in DEEPSPEED_PRESETS
    if config["zero_optimization"]["stage"] < 3:
        return Sharding(False, f"{name} gives each rank its own copy of the backbone", config, shipped)
    choice = recipe.distributed.shard_backbone
    if choice is True:
        return Sharding(True, f"{ranks.world_size} ranks share the backbone, as the recipe says", config, shipped)
    sharded, reason = False, "each rank has its own copy of the backbone, as the recipe says"
    if choice == "auto":
        from sktune.planning import choose_sharding

        sharded, reason = choose_sharding(recipe, ranks.world_size, _least_memory(ranks))
    # The same engine without stage 3: replicas of what is frozen, the optimizer shared.
    return Sharding(sharded, reason, config if sharded else read_deepspeed_config("zero2"), shipped)


def _least_memory(ranks: Ranks) -> int:
    """Bytes that the rank with the least memory can use."""
    if ranks.device.type == "cuda":
        own = torch.cuda.mem_get_info(ranks.device)[0]
    else:
        own = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))
    return min(ranks.gather(own))
