"""Where a loaded tensor goes: whole to one device, or (see `sktune.distributed.placement`) shared out among ranks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Placement(Protocol):
    """Takes the model's tensors one after the other, on all ranks in the same order.

    One rank reads the files; on the others a tensor's contents are not yet there when it is handed over.
    """

    device: torch.device
    """Where tensors are read to, quantized, and used."""
    reads: bool
    """Whether this rank is the one that reads."""

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        """A frozen parameter with the reading rank's contents; collective."""
        ...

    def buffer(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor with the reading rank's contents, whole on every rank; collective."""
        ...

    def agree(self, problem: str | None) -> str | None:
        """The reading rank's problem, on every rank; collective."""
        ...


class OneProcess:
    """Everything whole, in this process alone."""

    reads = True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(value, requires_grad=False)

    def buffer(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def agree(self, problem: str | None) -> str | None:
        return problem
