"""Steps in plain PyTorch: one process, or replicas that sum their gradients; evaluation alone without an optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sktune.distributed.engine import MOMENTS, State, set_rate
from sktune.distributed.ranks import Ranks
from sktune.model.tuned_model import TunedModel, TunedOutput


class PlainEngine:
    """One process, or replicas that sum their gradients."""

    def __init__(
        self, model: TunedModel, optimizer: torch.optim.Optimizer | None, max_grad_norm: float | None, ranks: Ranks
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.ranks = ranks
        self.parameters = model.trainable_parameters()

    def __call__(self, **batch: Any) -> TunedOutput:
        return self.model(**batch)

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.model.generate(input_ids, attention_mask, **options)

    def set_training(self, mode: bool) -> None:
        self.model.train(mode)

    def set_rate(self, factor: float) -> float:
        assert self.optimizer is not None
        return set_rate(self.optimizer, factor)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters.values()]
        if self.ranks.world_size > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, share in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(share.view_as(gradient))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        limit = self.max_grad_norm if self.max_grad_norm is not None else float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        assert self.optimizer is not None
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def weights(self) -> State:
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()} | self.model.constants()

    def optimizer_state(self) -> State:
        if self.optimizer is None:
            return {}
        return {
            f"{moment}/{name}": self.optimizer.state[p][moment].cpu().clone()
            for name, p in self.parameters.items()
            for moment in MOMENTS
        }

    def load_optimizer_state(self, state: State, steps: int) -> None:
        assert self.optimizer is not None
        for name, p in self.parameters.items():
            moments = {moment: state[f"{moment}/{name}"].to(p.device).clone() for moment in MOMENTS}
            self.optimizer.state[p] = {"step": torch.tensor(float(steps)), **moments}

    def release_lower_blocks(self) -> None:
        self.model.release_lower_blocks()

    def load_weights(self, weights: State) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(weights[name])
        self.model.put_constants(weights)
