"""Every use of what DeepSpeed does not document, with the reason; all of it seen with DeepSpeed 0.19.4 to 0.19.8.

To look at again with each new version: `pyproject.toml` allows no other minor version. The attributes that ZeRO-3 gives
partitioned parameters (`ds_shape`, `ds_numel`, `ds_tensor`, `ds_persist`) are read elsewhere too: they are what
DeepSpeed's own documentation of `zero.Init` and its examples read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


def forbid_compiled_collectives() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives for the CPU when ranks join.

    Cause: `init_distributed` builds the operator `deepspeed_shm_comm` at first use: a minute, a compiler, and a lock
    file that blocks later runs when it is interrupted. No setting turns that off.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def add_partitioned(first: nn.Parameter, parameter: nn.Parameter) -> None:
    """Broadcasts and partitions a further parameter, in the way of `first`, which `zero.Init` has partitioned.

    Cause: `zero.Init(module=...)` takes a whole module; weights that are streamed come one by one. It is how DeepSpeed
    itself adds parameters to those it has.
    """
    first.convert_to_zero_parameters(param_list=[parameter])  # type: ignore[attr-defined]


class GatheredWeights:
    """The frozen parameters that ZeRO-3 gathers when a layer is used, so that they can be given back.

    Args:
        engine: from `deepspeed.initialize`, of stage 3.
        backbone: the frozen model.
        has_optimizer: whether the engine trains anything.
    """

    def __init__(self, engine: Any, backbone: nn.Module, has_optimizer: bool) -> None:
        zero = engine.optimizer
        self._coordinator = (zero.parameter_offload if has_optimizer else zero).get_param_coordinator()
        self._persistent: list[nn.Parameter] = zero.persistent_parameters
        self._model, self._backbone = engine.module, backbone
        self._parameters = self._releasable()

    def _releasable(self) -> _Releasable:
        of_backbone: Iterable[Any] = self._backbone.parameters()
        return _Releasable(p for p in of_backbone if not p.requires_grad and not p.ds_persist)

    def forget_what_to_release(self) -> None:
        """To be called before each forward pass.

        Cause: what is to be released after a layer is kept in a cache of the coordinator's class beyond the order of
        layers it was worked out for. Once the method's text has been read, the token embeddings would stay gathered.
        """
        remembered: Any = getattr(type(self._coordinator), "_PartitionedParameterCoordinator__params_to_release", None)
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()

    def forget_order(self) -> None:
        """To be called before a pass that does not read some layers any more.

        Cause: the coordinator fetches ahead what came next in the last pass, until a layer comes in another order.
        """
        if not self._coordinator.is_invalid_trace():
            self._coordinator._invalidate_trace()

    def forget_taken(self) -> None:
        """To be called when parameters were taken from the model.

        Cause: after each update DeepSpeed gathers all that it keeps whole on every rank, from a list of its own.
        """
        held = {id(parameter) for parameter in self._model.parameters()}
        self._persistent[:] = [p for p in self._persistent if id(p) in held]
        self._parameters = self._releasable()

    def release(self) -> None:
        """Gives back what is gathered when a forward pass ends.

        Cause: until the backward pass ZeRO-3 holds what it has fetched early for it, when activations need the most
        memory; after an evaluation, layers for a pass that comes in another order or not at all.
        """
        self._coordinator.release_and_reset_all(self._parameters)


class _Releasable(nn.ParameterList):
    """Parameters as a module, which is what the coordinator releases."""

    def ds_external_parameters(self) -> tuple[()]:
        """None; DeepSpeed asks this of every module."""
        return ()


def create_moments(zero: Any, stage: int, moments: Sequence[str], steps: int) -> None:
    """Makes AdamW's state for each flat partition of a ZeRO optimizer, as after `steps` updates with zero gradients.

    Cause: AdamW makes its state at the first update; where moments are read or set before, they must exist. Below stage
    3 DeepSpeed links the moments of all parameter groups to their parameters after the first group's first update,
    when the others have none yet; made beforehand, they are all there.
    """
    partitions: Iterable[torch.Tensor] = (
        zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    )
    for partition in partitions:
        zero.optimizer.state[partition] = {
            "step": torch.tensor(float(steps)),
            **{moment: torch.zeros_like(partition) for moment in moments},
        }
    if stage < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def set_moment(parameter: nn.Parameter, value: torch.Tensor, moment: str, stage: int) -> None:
    """Sets a moment of a parameter from the whole tensor, on the parameter's device; on all ranks.

    Cause: DeepSpeed's setter for full states does not pad under stage 3 what the ranks cannot share evenly.
    """
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if stage < 3:
        safe_set_full_optimizer_state(parameter, value, moment)
        return
    share = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    padded = F.pad(value.flatten(), (0, share * dist.get_world_size() - value.numel()))
    safe_set_local_optimizer_state(parameter, padded[share * dist.get_rank() :][:share], moment)


def finish_prefetches(engine: Any) -> None:
    """To be called before parameters are gathered outside a step, under stage 3.

    Cause: a prefetch of the last pass may still be on its way, and gathering such a parameter again fails.
    """
    engine.empty_partition_cache()
