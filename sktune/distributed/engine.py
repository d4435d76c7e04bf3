"""What runs a step: DeepSpeed (`deepspeed_engine`), or plain PyTorch (`plain_engine`) for one process or replicas.

Both take the same losses (this rank's share of the global mean), give the same gradients, and hand out the same
world-size-free state, so runs are interchangeable between them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from sktune.model.tuned_model import TunedOutput

MOMENTS = ("exp_avg", "exp_avg_sq")

State = dict[str, torch.Tensor]
"""Full fp32 tensors on the CPU: `<parameter>` in a weights state, `<moment>/<parameter>` in an optimizer state."""


class Engine(Protocol):
    """Forward, backward and update of a `TunedModel` on all ranks together."""

    def __call__(self, **batch: Any) -> TunedOutput: ...
    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """As `TunedModel.generate`; each rank continues texts of its own, and waits for the longest of all."""
        ...

    def set_training(self, mode: bool) -> None:
        """Dropout of adapter and head on or off."""
        ...

    def set_rate(self, factor: float) -> float:
        """Multiplies each group's peak rate; returns the first group's rate."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulates gradients of this rank's share of the global loss; the shares of all ranks are summed."""
        ...

    def step(self) -> float:
        """After an accumulation's last backward: clips, updates, zeroes; returns the norm before clipping."""
        ...

    def weights(self) -> State:
        """The trainable parameters, gathered, and the model's constants; every rank takes part and gets them."""
        ...

    def optimizer_state(self) -> State:
        """The optimizer's moments, gathered; every rank takes part and gets them."""
        ...

    def load_optimizer_state(self, state: State, steps: int) -> None:
        """Restores the moments after `steps` updates."""
        ...

    def release_lower_blocks(self) -> None:
        """Gives back the memory of the blocks that nothing changes; every batch then brings its `frozen_states`."""
        ...

    def load_weights(self, weights: State) -> None:
        """Replaces the trainable parameters and the constants, for evaluation (not to train on)."""
        ...


def set_rate(optimizer: Any, factor: float) -> float:
    """Multiplies each group's peak rate; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
