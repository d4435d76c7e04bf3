"""Steps through DeepSpeed: the optimizer shared among the ranks, and in stage 3 the frozen model too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from sktune.distributed.engine import MOMENTS, State, set_rate
from sktune.distributed.ranks import Ranks
from sktune.model.tuned_model import TunedModel, TunedOutput


class DeepSpeedEngine:
    """A ZeRO engine around the model; the backbone is partitioned in stage 3, the optimizer from stage 1 on.

    Without an optimizer (stage 3 only) it evaluates.
    """

    def __init__(
        self, model: TunedModel, optimizer: torch.optim.Optimizer | None, config: dict[str, Any], ranks: Ranks
    ) -> None:
        import deepspeed

        self.model = model
        self.parameters = model.trainable_parameters()
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        # DeepSpeed averages over ranks and accumulation steps, the losses it is given are shares of a sum.
        self.scale = ranks.world_size * self.engine.gradient_accumulation_steps()
        self.stage: int = self.engine.zero_optimization_stage()
        self._replaced: State | None = None
        if self.stage == 3:
            zero = self.engine.optimizer
            self._coordinator = (zero if optimizer is None else zero.parameter_offload).get_param_coordinator()
            self._gathered_for_use = _GatheredForUse(
                p
                for p in model.backbone.parameters()
                if not p.requires_grad and not p.ds_persist  # type: ignore[attr-defined]
            )
        if self.stage < 3:
            # DeepSpeed links the moments of all parameter groups after the first group's first update, when the
            # others have none yet; made beforehand, they are all there.
            self._create_moments(steps=0)

    def __call__(self, **batch: Any) -> TunedOutput:
        if self.stage == 3:
            self._forget_what_to_release()
        output: TunedOutput = self.engine(**batch)
        self._release_gathered()
        return output

    def set_training(self, mode: bool) -> None:
        self.engine.train(mode)

    def _release_gathered(self) -> None:
        """Gives back what ZeRO-3 has gathered of the frozen model when a forward pass ends.

        Until the backward pass it would otherwise hold what it fetched early for it, when activations need the most
        memory; after an evaluation, layers for a pass that comes in another order or not at all.
        """
        if self.stage == 3:
            self._coordinator.release_and_reset_all(self._gathered_for_use)

    def _forget_what_to_release(self) -> None:
        # What is released after each layer is remembered by DeepSpeed beyond the order of layers it was worked out for
        # (0.19.8): once the text has been read, the token embeddings would stay whole for ever.
        remembered: Any = getattr(type(self._coordinator), "_PartitionedParameterCoordinator__params_to_release", None)
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()

    def set_rate(self, factor: float) -> float:
        return set_rate(self.engine.optimizer, factor)

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss * self.scale)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro step; only the last one's updates

    def step(self) -> float:
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def weights(self) -> State:
        from deepspeed.utils import safe_get_full_fp32_param

        if self._replaced is not None:  # ZeRO's fp32 masters still are the trained ones
            return dict(self._replaced)
        weights = {name: safe_get_full_fp32_param(p).cpu().clone() for name, p in self.parameters.items()}
        return weights | self.model.constants()

    def optimizer_state(self) -> State:
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            f"{moment}/{name}": safe_get_full_optimizer_state(p, moment).cpu().clone()
            for name, p in self.parameters.items()
            for moment in MOMENTS
        }

    def load_optimizer_state(self, state: State, steps: int) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._create_moments(steps)
        for name, p in self.parameters.items():
            for moment in MOMENTS:
                value = state[f"{moment}/{name}"].to(self.engine.device)
                if self.stage < 3:
                    safe_set_full_optimizer_state(p, value, moment)
                else:
                    # The full setter of stage 3 does not pad what the ranks cannot share evenly.
                    share = p.ds_tensor.ds_numel  # type: ignore[attr-defined]
                    padded = F.pad(value.flatten(), (0, share * dist.get_world_size() - value.numel()))
                    safe_set_local_optimizer_state(p, padded[share * dist.get_rank() :][:share], moment)

    def _create_moments(self, steps: int) -> None:
        # AdamW makes its state at the first update; where it is read or set before, it must exist, for each flat
        # partition.
        zero = self.engine.optimizer
        partitions = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for partition in partitions:
            zero.optimizer.state[partition] = {
                "step": torch.tensor(float(steps)),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        if self.stage < 3:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def load_weights(self, weights: State) -> None:
        import deepspeed

        self._replaced = dict(weights)
        if self.stage == 3:
            self.engine.empty_partition_cache()  # a prefetch of the last pass may still be on its way
        parameters = list(self.parameters.items())
        gather = deepspeed.zero.GatheredParameters([p for _, p in parameters], modifier_rank=0, enabled=self.stage == 3)
        with torch.no_grad(), gather:
            for name, p in parameters:
                if p.numel():
                    p.copy_(weights[name])
        self.model.put_constants(weights)


class _GatheredForUse(nn.ParameterList):
    """The frozen parameters that ZeRO-3 gathers when a layer is used, as a module that it can release."""

    def ds_external_parameters(self) -> tuple[()]:
        """None; DeepSpeed asks this of every module."""
        return ()
