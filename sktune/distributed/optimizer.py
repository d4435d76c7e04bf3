"""AdamW over adapter and head, each with its own rate, and the schedule both follow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from sktune.methods.method import DECAYS
from sktune.sections import TrainingSection


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], training: TrainingSection
) -> dict[tuple[float, float], list[nn.Parameter]]:
    """Parameters by their peak rate and weight decay: adapter or head, with or without decay.

    Weight decay pulls to zero: it is right for matrices, and wrong for what is added to every feature (biases) or
    multiplies it (weights of norms, the scales that `methods.method.without_decay` marks).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}: everything that trains is fp32"
        rate = training.learning_rate
        if name.startswith("head.") and training.head_learning_rate is not None:
            rate = training.head_learning_rate
        shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the tensor itself is empty
        decays = len(shape) > 1 and getattr(parameter, DECAYS, True) and not name.endswith("bias")
        groups.setdefault((rate, training.weight_decay if decays else 0.0), []).append(parameter)
    return groups


def build_optimizer(parameters: Mapping[str, nn.Parameter], training: TrainingSection) -> torch.optim.AdamW | None:
    """AdamW with up to four groups, of `parameter_groups`; None where there is nothing to train.

    Each group remembers its peak rate as `peak_lr`.
    """
    if not parameters:
        return None
    return torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), members in parameter_groups(parameters, training).items()
        ],
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )


def warmup_steps(training: TrainingSection, total_steps: int) -> int:
    """Steps of linear warm-up: `warmup_steps`, else the share `warmup_ratio` of all steps."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil(training.warmup_ratio * total_steps)


def rate_factor(training: TrainingSection, step: int, total_steps: int) -> float:
    """What the peak rate is multiplied with at optimizer step `step` (0-based).

    A pure function of the step, so a resumed run needs no state to follow the same schedule.
    """
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if training.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if training.lr_scheduler_type == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
