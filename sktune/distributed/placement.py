"""Loaded tensors among several ranks: the main rank reads; each keeps a copy, or ZeRO-3 a share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sktune.allocator import give_back_large_blocks_at_once
from sktune.backbone.placement import OneProcess, Placement
from sktune.distributed.deepspeed_internals import add_partitioned
from sktune.distributed.ranks import Ranks


class Replicated:
    """Every rank holds the whole tensor."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.device = ranks.device
        self.reads = ranks.is_main

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(self.buffer(value), requires_grad=False)

    def buffer(self, value: torch.Tensor) -> torch.Tensor:
        # As bytes: not every backend sends every dtype.
        dist.broadcast(value.view(-1).view(torch.uint8), src=0)
        return value

    def agree(self, problem: str | None) -> str | None:
        return self.ranks.broadcast(problem)


class Partitioned(Replicated):
    """ZeRO-3's share of each parameter, taken as soon as the main rank has sent it; buffers are whole.

    Args:
        ranks: the processes that share.
        config: a DeepSpeed configuration of stage 3; its parameter offloading is heeded.
    """

    def __init__(self, ranks: Ranks, config: dict[str, Any]) -> None:
        super().__init__(ranks)
        zero = {key: value for key, value in config["zero_optimization"].items() if value != "auto"}
        self.config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        self._first: Any = None
        give_back_large_blocks_at_once()

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        import deepspeed

        parameter = nn.Parameter(value, requires_grad=False)
        if self._first is None:
            box = nn.Module()
            box.register_parameter("parameter", parameter)
            deepspeed.zero.Init(module=box, config_dict_or_path=self.config)
            self._first = parameter
        else:
            add_partitioned(self._first, parameter)
        return parameter


def placement_for(ranks: Ranks, config: dict[str, Any] | None, sharded: bool) -> Placement:
    """Where a run's backbone goes."""
    if sharded:
        assert config is not None
        return Partitioned(ranks, config)
    return Replicated(ranks) if ranks.world_size > 1 else OneProcess(ranks.device)
