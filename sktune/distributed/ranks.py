"""The processes of one run: who they are, and the few things they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sktune.distributed.deepspeed_internals import forbid_compiled_collectives
from sktune.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    launched: bool
    """True where `deepspeed` or `torchrun` started this process, also when it is the only one."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64; the same on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in rank order (plain Python objects of this run's own making)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """What `action` returns on the main rank, None on the others; its UserError is raised on every rank."""
        message, value = "", None
        if self.is_main:
            try:
                value = action()
            except UserError as error:
                if self.world_size == 1:
                    raise
                message = str(error) or type(error).__name__
        if message := self.broadcast(message):
            raise UserError(message)
        return value

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def start_ranks(timeout_seconds: int) -> Ranks:
    """Joins the run that the launcher's environment variables describe; alone without them.

    Raises:
        RuntimeError: where the other processes cannot be reached in time.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, world_size = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if launched else (0, 1)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    if launched:
        import deepspeed

        forbid_compiled_collectives()
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            verbose=False,
        )
    return Ranks(rank, local_rank, world_size, device, launched)


def leave_ranks() -> None:
    """Ends the process group in order, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
