"""What a plan says of one rank, as numbers, and for people as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from typing import Any, Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Moment = Literal[
    "after_load", "after_forward", "in_backward", "after_backward", "after_step", "in_evaluation", "at_checkpoint"
]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
USABLE = 0.9
"""Share of a GPU's memory that a plan may fill."""
NOT_INCLUDED = (
    "not included: the CUDA context, NCCL's buffers, kernels' workspaces and fragmentation of the allocator; "
    f"{1 - USABLE:.0%} of the memory is kept for them"
)


def _row(group: str, what: str) -> Any:
    return field(metadata={"group": group, "what": what})


@dataclass(frozen=True)
class Plan:
    """Bytes of the rank that has most, integers; what a number is stands beside it, as the table prints it.

    gathered: at a moment of `live`. Activations the other way are None where that was not asked for.
    live: what is held at a moment of a settled run (ZeRO-3 knows the order of the modules from the fourth step on):
        after_load: the engine is built, nothing has run; after_forward, after_backward, after_step: output in hand;
        in_backward: the gradient arrives at the output of block `layers // 2`; in_evaluation: that block has run;
        at_checkpoint: after an evaluation, with everything gathered that is saved.
    gathered_per_...: what all-gathers put out, own share included; an evaluation is one batch.
    memory: of the GPU; None: not given.
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
    memory: int | None
    assumptions: tuple[str, ...]
    live: dict[Moment, int]
    packed: int = _row("held by each rank", "quantized weights")
    scales: int = _row("held by each rank", "their scales")
    rest: int = _row("held by each rank", "weights that are not quantized")
    buffers: int = _row("held by each rank", "buffers (rotary frequencies and the like)")
    adapter: int = _row("held by each rank", "adapter")
    head: int = _row("held by each rank", "head")
    trained_copies: int = _row("held by each rank", "the optimizer's copy of them")
    gradients: int = _row("held by each rank", "their gradients")
    buckets: int = _row("held by each rank", "buckets in which gradients are reduced")
    moments: int = _row("held by each rank", "optimizer (AdamW's moments)")
    semantics: int = _row("held by each rank", "semantics of the text, and the refined prefix")
    host: int = _row("held by each rank", "besides, in the CPU's memory")
    activations: int = _row("for a time", "activations kept for backward, of them")
    logits: int = _row("for a time", "  logits")
    gathered: int = _row("for a time", "gathered by ZeRO-3")
    largest_dequantized: int = _row("for a time", "largest dequantized weight, for a moment")
    activations_with_checkpointing: int | None = _row("for a time", "activations with gradient checkpointing")
    activations_without_checkpointing: int | None = _row("for a time", "activations without gradient checkpointing")
    load_peak: int = _row("most at any instant", "loading")
    reading_peak: int | None = _row("most at any instant", "reading the frozen states")
    training_peak: int = _row("most at any instant", "training")
    evaluation_peak: int = _row("most at any instant", "evaluation")
    gathered_per_forward: int = _row("moved", "gathered in a forward pass")
    gathered_per_step: int = _row("moved", "gathered in a step (forward, backward, recomputation, update)")
    gathered_per_evaluation: int = _row("moved", "gathered for an evaluation batch")
    reduced_per_step: int = _row("moved", "gradients summed in a step")

    @property
    def peak(self) -> int:
        """The most bytes at any instant of a run."""
        return max(self.load_peak, self.reading_peak or 0, self.training_peak, self.evaluation_peak)

    @property
    def fits(self) -> bool | None:
        """Whether the run fits in 90 percent of `memory`; None where no memory was given."""
        return None if self.memory is None else self.peak <= USABLE * self.memory

    def as_json(self) -> dict[str, Any]:
        """Everything, bytes as integers."""
        return {**asdict(self), "assumptions": list(self.assumptions), "peak": self.peak, "fits": self.fits}


def gibibytes(size: int) -> str:
    """For people: "3.56 GiB", or MiB below a tenth of one."""
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 / 10 else f"{size / 2**30:,.2f} GiB"


def print_plan(console: Console, plan: Plan, advice: str | None) -> None:
    """One plan as a table, the assumptions, the verdict, and what to change where it does not fit."""
    console.print(
        f"{escape(plan.model)}: {plan.parameters:,} parameters in {plan.bits} bits, {plan.trainable:,} of them train; "
        f"{plan.ranks} rank(s), {plan.engine}; batch {plan.batch_size} x {plan.gradient_accumulation_steps}, "
        f"gradient checkpointing {'on' if plan.gradient_checkpointing else 'off'}",
        highlight=False,
    )
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    table.columns[1].justify = "right"
    rows = [one for one in fields(plan) if one.metadata and getattr(plan, one.name) is not None]
    for group, members in groupby(rows, lambda one: one.metadata["group"]):
        table.add_row(f"[bold]{group}[/bold]", "")
        for one in members:
            table.add_row(f"  {one.metadata['what']}", gibibytes(getattr(plan, one.name)))
    console.print(table)
    _print_notes(console, plan.assumptions)
    if plan.memory is None:
        console.print("no verdict: give --gpu-memory", highlight=False)
        return
    verdict = "[bold]fits[/bold]" if plan.fits else "[bold]does not fit[/bold]"
    usable = f"{USABLE:.0%} of {gibibytes(plan.memory)} are {gibibytes(int(USABLE * plan.memory))}"
    console.print(f"{verdict}: {gibibytes(plan.peak)} at most, and {usable}", highlight=False)
    if advice is not None:
        console.print(f"cheapest change: {escape(advice)}", highlight=False)


def print_sweep(console: Console, plans: Sequence[Plan], axes: Iterable[str]) -> None:
    """A grid as a table, a row for each plan."""
    columns = {"bits": "bits", "ranks": "ranks", "checkpointing": "gradient_checkpointing", "batch": "batch_size"}
    table = Table(box=None, pad_edge=False)
    for name in (*axes, "weights", "loading", "training", "evaluation", "gathered/step", "fits"):
        table.add_column(name, justify="right")
    for plan in plans:
        weights = plan.packed + plan.scales + plan.rest
        before_training = max(plan.load_peak, plan.reading_peak or 0)
        sizes = (weights, before_training, plan.training_peak, plan.evaluation_peak, plan.gathered_per_step)
        fits = {None: "?", True: "yes", False: "no"}[plan.fits]
        table.add_row(*(str(getattr(plan, columns[axis])) for axis in axes), *map(gibibytes, sizes), fits)
    console.print(table)
    _print_notes(console, dict.fromkeys(note for plan in plans for note in plan.assumptions))


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(escape(note if note.startswith("not") else f"assumed: {note}"), highlight=False)
