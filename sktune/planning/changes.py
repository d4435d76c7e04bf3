"""Changes of a recipe, each a list of overrides: those that make a run fit, and a grid of plans over several."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from sktune.errors import UserError
from sktune.methods.upper_layers import ANY_DEPTH
from sktune.planning.planner import plan
from sktune.planning.report import Plan
from sktune.recipe import Recipe, parse_recipe
from sktune.recipe.overrides import apply_overrides

MOST_RANKS = 64
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A recipe and a number of ranks that differ from before; `what` in words, `overrides` as they are typed."""

    what: str
    overrides: Overrides
    recipe: Recipe
    ranks: int


@dataclass(frozen=True)
class Advice:
    """The cheapest change that makes a run fit, or all that save memory where none does; and the plan after them."""

    changes: tuple[Change, ...]
    plan: Plan

    @property
    def text(self) -> str:
        """In words, with what to append to the command line."""
        if not self.plan.fits:
            return "none of the changes that were tried makes it fit; choose a smaller model or larger GPUs"
        typed = " ".join(override for change in self.changes for override in change.overrides)
        return f"{', and '.join(change.what for change in self.changes)}: {typed}"


def advise(recipe: Recipe, ranks: int, memory_bytes: int, nodes: int = 1) -> Advice:
    """The first single change that makes a run fit that does not, else the first combination, from the cheapest on.

    `ranks` are of all nodes, `memory_bytes` of a GPU.
    """

    def planned(kind: str | None = None) -> Iterator[tuple[Change, Plan]]:
        for change in changes(recipe, ranks, nodes, kind):
            with suppress(UserError):  # of what is only known with the model's family
                yield change, plan(change.recipe, ranks=change.ranks, memory_bytes=memory_bytes, **quickly)

    quickly = {"compare_checkpointing": False}
    for change, result in planned():
        if result.fits:
            return Advice((change,), result)
    taken: list[Change] = []
    best = plan(recipe, ranks=ranks, memory_bytes=memory_bytes, **quickly)
    for kind in dict.fromkeys(kind for kind, *_ in _candidates(recipe, ranks)):
        chosen = None
        for change, result in planned(kind):
            if result.peak < best.peak:
                chosen, best = change, result
            if best.fits:
                break
        if chosen is not None:
            taken.append(chosen)
            recipe, ranks = chosen.recipe, chosen.ranks
        if best.fits:
            break
    return Advice(tuple(taken), best)


def changes(recipe: Recipe, ranks: int, nodes: int = 1, only: str | None = None) -> Iterator[Change]:
    """Single changes that the recipe's rules allow, of one kind or of all, from the cheapest on."""
    for kind, what, overrides, count in _candidates(recipe, ranks):
        if only not in (None, kind):
            continue
        gpus = (f"--gpus {count // nodes}",) if count != ranks else ()
        typed = (f"{name}={shlex.quote(value)}" for name, _, value in (one.partition("=") for one in overrides))
        try:
            yield Change(what, (*gpus, *typed), _changed(recipe, overrides), count)
        except UserError:
            continue


def _changed(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with overrides, checked again; raises UserError with every rule that it breaks."""
    given = recipe.model_dump(mode="json", exclude_unset=True)
    given["method"] = {"name": recipe.method.name, **given["method"]}
    mapping, _, problems = apply_overrides(given, overrides)
    assert not problems, problems
    return parse_recipe(mapping)


def _candidates(recipe: Recipe, ranks: int) -> Iterator[tuple[str, str, Overrides, int]]:
    """(kind, in words, overrides, ranks)."""
    training, quantization, distributed = recipe.training, recipe.quantization, recipe.distributed
    if not training.gradient_checkpointing:
        yield "checkpointing", "recompute activations", ("training.gradient_checkpointing=true",), ranks
    rows, evaluated = training.per_device_train_batch_size, training.per_device_eval_batch_size
    parts = [2**power for power in range(1, max(rows, evaluated).bit_length())]
    for part in (part for part in parts if part <= evaluated):
        smaller = f"training.per_device_eval_batch_size={evaluated // part}"
        yield "evaluation", f"evaluate {evaluated // part} rows at a time", (smaller,), ranks
    for part in (part for part in parts if rows % part == 0):
        overrides = (
            f"training.per_device_train_batch_size={rows // part}",
            f"training.gradient_accumulation_steps={training.gradient_accumulation_steps * part}",
            # Evaluation has no gradients to accumulate: its batch can shrink by itself.
            f"training.per_device_eval_batch_size={max(1, evaluated // part)}",
        )
        yield "batch", "halve the batch" if part == 2 else f"batches of a {part}th", overrides, ranks
    for bits in (8, 4):
        if bits < (quantization.bits or 16):
            yield "bits", f"{bits} bits", _bits(recipe, bits), ranks
    if quantization.bits == 4 and not quantization.bnb_4bit_use_double_quant:
        yield "scales", "quantize the scales", ("quantization.bnb_4bit_use_double_quant=true",), ranks
    share = "distributed.shard_backbone=true"
    shared = ("distributed.deepspeed=zero3", share)
    if ranks > 1 and (distributed.deepspeed in ("zero2", None) or distributed.shard_backbone is False):
        yield "sharing", "share the backbone", shared, ranks
    streamed: Overrides = ("training.frozen_states=disk", "training.stream_frozen_blocks=true")
    if training.frozen_states_in_8bit:
        streamed = (*streamed, "training.frozen_states_in_8bit=false")
    frozen = Fraction(recipe.method.frozen_blocks(ANY_DEPTH), ANY_DEPTH)
    if frozen and not training.stream_frozen_blocks:
        yield "depth", "hold the frozen blocks one at a time", streamed, ranks
    for part_of_blocks in ("1/2", "1/3"):
        if frozen < 1 - Fraction(part_of_blocks):
            what = f"train the upper {part_of_blocks} of the blocks, and hold those below one at a time"
            yield "depth", what, (f"method.layers={part_of_blocks}", *streamed), ranks
    is_shared = distributed.deepspeed == "zero3" and distributed.shard_backbone is True
    for more in (ranks * 2**power for power in range(1, MOST_RANKS.bit_length())):
        if more <= MOST_RANKS:
            yield "ranks", f"share over {more} GPUs", () if is_shared else shared, more
    if distributed.deepspeed != "zero3_offload":
        offload = ("distributed.deepspeed=zero3_offload", share)
        yield "offloading", "keep the weights in the CPU's memory", offload, ranks


def _bits(recipe: Recipe, bits: int) -> Overrides:
    """The backbone in 4 or 8 bits, or (16) not quantized; options of other bits would do nothing, and go."""
    if bits == (recipe.quantization.bits or 16):
        return ()
    kept = recipe.quantization.model_dump(mode="json", exclude_unset=True, include={"skip_modules"})
    return (f"quantization={json.dumps({**kept, f'load_in_{bits}bit': True} if bits < 16 else {})}",)


AXES: dict[str, tuple[tuple[int, ...], Callable[[Recipe, int], Overrides]]] = {
    "bits": ((16, 8, 4), _bits),
    "ranks": ((1, 2, 4, 8), lambda recipe, ranks: ()),
    "checkpointing": ((0, 1), lambda recipe, on: (f"training.gradient_checkpointing={bool(on)}",)),
    "batch": ((1, 2, 4, 8, 16, 32), lambda recipe, rows: (f"training.per_device_train_batch_size={rows}",)),
}
"""Axes of a grid: the values, and the overrides that give a recipe one of them."""


def parse_axes(text: str) -> tuple[str, ...]:
    """Names of axes, separated by commas; raises UserError for a name that is none."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in AXES or names.count(name) > 1:
            raise UserError(f"--sweep: {name!r} in {text!r}; allowed: each of {', '.join(AXES)} at most once")
    return names


def sweep(recipe: Recipe, axes: tuple[str, ...], *, ranks: int, memory_bytes: int | None) -> list[Plan]:
    """A plan for each combination, the last axis running fastest; the number of ranks that is given is one of theirs.

    Raises:
        UserError: for whatever the user can correct.
    """
    plans = []
    for values in product(*(sorted({*AXES[axis][0], ranks}) if axis == "ranks" else AXES[axis][0] for axis in axes)):
        point = dict(zip(axes, values, strict=True))
        overrides = tuple(override for axis, value in point.items() for override in AXES[axis][1](recipe, value))
        try:
            changed = _changed(recipe, overrides)
        except UserError as error:
            where = ", ".join(f"{axis} {value}" for axis, value in point.items())
            raise UserError(f"--sweep: the recipe cannot be at {where}:\n{error}") from error
        count = point.get("ranks", ranks)
        plans.append(plan(changed, ranks=count, memory_bytes=memory_bytes, compare_checkpointing=False))
    return plans
