"""What a plan says: the bytes of one rank by what they are for, at which moment, and what is not counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Moment = Literal[
    "after_load", "after_forward", "in_backward", "after_backward", "after_step", "in_evaluation", "at_checkpoint"
]
MOMENTS: tuple[Moment, ...] = Moment.__args__  # type: ignore[attr-defined]
USABLE = 0.9
"""Share of a GPU's memory that a plan may fill."""
NOT_INCLUDED = (
    "not included: the CUDA context, NCCL's buffers, kernels' workspaces and fragmentation of the allocator; "
    f"{1 - USABLE:.0%} of the memory is kept for them"
)


@dataclass(frozen=True)
class Plan:
    """Bytes of one rank, of the one that has most; integers.

    packed, scales, rest, buffers: the frozen backbone at rest.
    adapter, head: what trains, one rank's share; `trained_copies` what ZeRO holds of it besides.
    gradients, buckets, moments: of what trains.
    semantics: the text's semantics and the refined prefix, kept between steps.
    activations: kept for backward, as the recipe says; the two after it with and without gradient checkpointing
        (None where that was not asked for).
    logits: of a training batch, part of the activations.
    gathered: most held gathered by ZeRO-3 at a moment of `live`.
    largest_dequantized: a whole weight in the arithmetic's dtype, for the moment of its use.
    load_peak, training_peak, evaluation_peak: the most at any instant; `peak` is the largest of them.
    live: what is held at a moment of a settled run (ZeRO-3 has learned the order of the modules: from the fourth
        step on, where the text is read once; not in the first step after an evaluation, which holds more):
        after_load: the engine is built, nothing has run;
        after_forward: of a training batch, output in hand;
        in_backward: the gradient arrives at the middle block's output (block `layers // 2`);
        after_backward, after_step: the output still in hand;
        in_evaluation: the middle block has run, without gradient;
        at_checkpoint: after an evaluation, with everything gathered that is saved.
    host: bytes in the CPU's memory, where ZeRO offloads.
    gathered_per_forward, gathered_per_step, gathered_per_evaluation: what all-gathers put out, own share included;
        an evaluation is one batch.
    reduced_per_step: gradients that are summed over the ranks.
    """

    model: str
    bits: int
    ranks: int
    engine: str
    sharded: bool
    gradient_checkpointing: bool
    batch_size: int
    gradient_accumulation_steps: int
    parameters: int
    trainable: int
    packed: int
    scales: int
    rest: int
    buffers: int
    adapter: int
    head: int
    trained_copies: int
    gradients: int
    buckets: int
    moments: int
    semantics: int
    activations: int
    activations_with_checkpointing: int | None
    activations_without_checkpointing: int | None
    logits: int
    gathered: int
    largest_dequantized: int
    load_peak: int
    training_peak: int
    evaluation_peak: int
    live: dict[Moment, int]
    host: int
    gathered_per_forward: int
    gathered_per_step: int
    gathered_per_evaluation: int
    reduced_per_step: int
    memory: int | None
    assumptions: tuple[str, ...]

    @property
    def peak(self) -> int:
        """The most bytes at any instant of a run."""
        return max(self.load_peak, self.training_peak, self.evaluation_peak)

    @property
    def fits(self) -> bool | None:
        """Whether the run fits in 90 percent of `memory`; None where no memory was given."""
        return None if self.memory is None else self.peak <= USABLE * self.memory

    def as_json(self) -> dict[str, Any]:
        """Everything, bytes as integers."""
        return {**asdict(self), "assumptions": list(self.assumptions), "peak": self.peak, "fits": self.fits}
