"""When ZeRO-3 asks for a module's parameters and when it lets them go: the moments, without DeepSpeed.

The same hooks that `deepspeed.runtime.zero.parameter_offload` puts on every module: around forward, and around
backward through identity functions on the module's outputs and inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Use(NamedTuple):
    """A module is about to be used (`fetch`) or has been (`release`)."""

    module: int
    """Number of the module in `model.modules()`."""
    fetch: bool
    forward: bool
    recompute: bool
    """A forward inside backward: gradient checkpointing."""


def watch_modules(model: nn.Module, report: Callable[[Use], None]) -> None:
    """Reports every use of every module from now on, in order."""
    for number, module in enumerate(model.modules()):
        _watch(module, number, report)


def _watch(module: nn.Module, number: int, report: Callable[[Use], None]) -> None:
    remaining = 0

    def recomputing() -> bool:
        return torch._C._current_graph_task_id() != -1

    class BeforeBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
            return output.detach()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            report(Use(number, True, False, False))
            return gradient

    class AfterBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            nonlocal remaining
            remaining += tensor.requires_grad
            return tensor.detach()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                report(Use(number, False, False, False))
            return gradient

    def before(module: nn.Module, inputs: Any) -> Any:
        nonlocal remaining
        report(Use(number, True, True, recomputing()))
        remaining = 0
        return _each_tensor(AfterBackward.apply, inputs)

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        report(Use(number, False, True, recomputing()))
        return _each_tensor(BeforeBackward.apply, output)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _each_tensor(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        touched = [_each_tensor(function, item) for item in value]
        return type(value)(*touched) if hasattr(value, "_fields") else type(value)(touched)
    if isinstance(value, dict):
        for key in value:
            value[key] = _each_tensor(function, value[key])
    return value


class LinearThatKeepsItsInput(torch.autograd.Function):
    """What `nn.functional.linear` is under ZeRO-3: DeepSpeed's own, which keeps its input although W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        product = x.matmul(weight.t())
        return product if bias is None else product + bias

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient.matmul(weight) if wanted[0] else None,
            flat.t().matmul(x.reshape(-1, x.shape[-1])) if wanted[1] else None,
            flat.sum(0) if len(wanted) > 2 and wanted[2] else None,
        )
