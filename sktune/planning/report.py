"""Plans for people: a table of one run, or of a grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sktune.planning.changes import Advice
from sktune.planning.planned_bytes import USABLE, Plan
from sktune.planning.units import gibibytes

_HELD = {
    "packed": "quantized weights",
    "scales": "their scales",
    "rest": "weights that are not quantized",
    "buffers": "buffers (rotary frequencies and the like)",
    "adapter": "adapter",
    "head": "head",
    "trained_copies": "the optimizer's copy of them",
    "gradients": "their gradients",
    "buckets": "buckets in which gradients are reduced",
    "moments": "optimizer (AdamW's moments)",
    "semantics": "semantics of the text, and the refined prefix",
}
_PASSING = {
    "activations": "activations kept for backward, of them",
    "logits": "  logits",
    "gathered": "gathered by ZeRO-3",
    "largest_dequantized": "largest dequantized weight, for a moment",
}
_PEAKS = {"load_peak": "loading", "training_peak": "training", "evaluation_peak": "evaluation"}
_MOVED = {
    "gathered_per_forward": "gathered in a forward pass",
    "gathered_per_step": "gathered in a step (forward, backward, recomputation, update)",
    "gathered_per_evaluation": "gathered for an evaluation batch",
    "reduced_per_step": "gradients summed in a step",
}


def print_plan(console: Console, plan: Plan, advice: Advice | None) -> None:
    """One plan as a table, the assumptions, and the verdict."""
    bits = f"{plan.bits} bits"
    console.print(
        f"{escape(plan.model)}: {plan.parameters:,} parameters in {bits}, {plan.trainable:,} of them train; "
        f"{plan.ranks} rank(s), {plan.engine}; batch {plan.batch_size} x {plan.gradient_accumulation_steps}, "
        f"gradient checkpointing {'on' if plan.gradient_checkpointing else 'off'}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, rows in {
        "held by each rank": _HELD, "for a time": _PASSING, "most at any instant": _PEAKS, "moved": _MOVED
    }.items():  # fmt: skip
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, what in rows.items():
            table.add_row(f"  {what}", gibibytes(getattr(plan, name)))
        if rows is _PASSING:
            for name, how in (("with", "with"), ("without", "without")):
                size = getattr(plan, f"activations_{name}_checkpointing")
                if size is not None:
                    table.add_row(f"  activations {how} gradient checkpointing", gibibytes(size))
    if plan.host:
        table.add_row("  in the CPU's memory", gibibytes(plan.host))
    console.print(table)
    _print_notes(console, plan.assumptions)
    if plan.memory is None:
        console.print("no verdict: give --gpu-memory", highlight=False)
        return
    verdict = "[bold]fits[/bold]" if plan.fits else "[bold]does not fit[/bold]"
    console.print(
        f"{verdict}: {gibibytes(plan.peak)} at most, and {USABLE:.0%} of {gibibytes(plan.memory)} are "
        f"{gibibytes(int(USABLE * plan.memory))}",
        highlight=False,
    )
    if advice is not None:
        after = f" ({gibibytes(advice.plan.peak)})" if advice.plan.fits else ""
        console.print(f"cheapest change: {escape(advice.text)}{after}", highlight=False)


def print_sweep(console: Console, plans: Sequence[Plan], axes: Iterable[str]) -> None:
    """A grid as a table, a row for each plan."""
    columns = {"bits": "bits", "ranks": "ranks", "checkpointing": "gradient_checkpointing", "batch": "batch_size"}
    table = Table(box=None, pad_edge=False)
    for name in (*axes, "weights", "loading", "training", "evaluation", "gathered/step", "fits"):
        table.add_column(name, justify="right")
    for plan in plans:
        chosen = [str(getattr(plan, columns[axis])) for axis in axes]
        sizes = (
            plan.packed + plan.scales + plan.rest, plan.load_peak, plan.training_peak, plan.evaluation_peak,
            plan.gathered_per_step,
        )  # fmt: skip
        fits = {None: "?", True: "yes", False: "no"}[plan.fits]
        table.add_row(*chosen, *map(gibibytes, sizes), fits)
    console.print(table)
    _print_notes(console, dict.fromkeys(note for plan in plans for note in plan.assumptions))


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(f"assumed: {escape(note)}" if not note.startswith("not") else escape(note), highlight=False)
