"""Watching gradients in float16: below 6e-5 its numbers lose digits, and below 6e-8 they are zero."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sktune.model.tuned_model import TunedModel

logger = logging.getLogger(__name__)

TOLERATED = 0.5
"""Share of a gradient's entries that may be too small for all digits of float16."""


@contextmanager
def watched_for_underflow(model: TunedModel) -> Iterator[None]:
    """Inside, the gradient of the lowest block that has one is looked at in every step, where the model is in float16.

    Where more than `TOLERATED` of its entries are below the smallest normal number, this is said once. Tokens whose
    gradient is zero throughout do not count: above the last block only some of them have any.
    """
    blocks, lowest = model.backbone.blocks, model.frozen_blocks
    if model.backbone.dtype != torch.float16 or lowest >= len(blocks):
        yield
        return
    smallest, warned = torch.finfo(torch.float16).tiny, False
    seen: list[torch.Tensor] = []  # of a step; read when backward is over, so that it waits for no device

    def look(gradient: torch.Tensor) -> None:
        sizes = gradient.detach().flatten(0, -2).abs()
        has_any = (sizes > 0).any(-1)
        small = ((sizes < smallest).float().mean(-1) * has_any).sum()
        seen.append(torch.stack((small, has_any.sum().float())))

    def judge() -> None:
        nonlocal warned
        while seen:
            small, count = seen.pop().tolist()
            share = small / count if count else 1.0
            if share <= TOLERATED or warned:
                continue
            warned = True
            logger.warning(
                "float16: %.0f%% of the gradient's entries at block %d are below %.0e, where float16 loses digits; "
                "what is trained below it learns little: use model.dtype bfloat16 or float32",
                100 * share, lowest, smallest,
            )  # fmt: skip

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        judge()
        states = output if isinstance(output, torch.Tensor) else output[0]
        if states.requires_grad and not warned:
            states.register_hook(look)

    hook = blocks[lowest].register_forward_hook(watch)
    try:
        yield
    finally:
        hook.remove()
        judge()
