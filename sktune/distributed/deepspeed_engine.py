"""Steps through DeepSpeed: the optimizer shared among the ranks, and in stage 3 the frozen model too."""

from __future__ import annotations

from typing import Any

import torch

from sktune.distributed.deepspeed_internals import GatheredWeights, create_moments, finish_prefetches, set_moment
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
        self._gathered: GatheredWeights | None = None
        if self.stage == 3:
            self._gathered = GatheredWeights(self.engine, model.backbone, optimizer is not None)
        else:
            create_moments(self.engine.optimizer, self.stage, MOMENTS, steps=0)

    def __call__(self, **batch: Any) -> TunedOutput:
        if self._gathered is None:
            output: TunedOutput = self.engine(**batch)
            return output
        self._gathered.forget_what_to_release()
        output = self.engine(**batch)
        self._gathered.release()
        return output

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        if self._gathered is None:
            return self.model.generate(input_ids, attention_mask, **options)
        self._gathered.forget_what_to_release()
        self._gathered.forget_order()
        # A rank whose texts have ended goes on with the others until theirs have: they gather layers together.
        written = self.model.generate(input_ids, attention_mask, synced_gpus=True, **options)
        self._gathered.release()
        return written

    def set_training(self, mode: bool) -> None:
        self.engine.train(mode)

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
        create_moments(self.engine.optimizer, self.stage, MOMENTS, steps)
        for name, p in self.parameters.items():
            for moment in MOMENTS:
                set_moment(p, state[f"{moment}/{name}"].to(self.engine.device), moment, self.stage)

    def release_lower_blocks(self) -> None:
        if self._gathered is not None:
            finish_prefetches(self.engine)
            self._gathered.forget_order()
        self.model.release_lower_blocks()
        if self._gathered is not None:
            self._gathered.forget_taken()

    def load_weights(self, weights: State) -> None:
        import deepspeed

        self._replaced = dict(weights)
        if self.stage == 3:
            finish_prefetches(self.engine)
        parameters = list(self.parameters.items())
        gather = deepspeed.zero.GatheredParameters([p for _, p in parameters], modifier_rank=0, enabled=self.stage == 3)
        with torch.no_grad(), gather:
            for name, p in parameters:
                if p.numel():
                    p.copy_(weights[name])
        self.model.put_constants(weights)
