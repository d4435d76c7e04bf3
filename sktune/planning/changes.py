"""Changes of a recipe that save memory, from the cheapest on, and the first of them that makes a run fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from sktune.planning.planned_bytes import Plan
from sktune.planning.planner import plan
from sktune.recipe.recipe import Recipe
from sktune.recipe.rules import broken_rules
from sktune.sections import QuantizationSection

MOST_RANKS = 64


@dataclass(frozen=True)
class Change:
    """A recipe and a number of ranks that differ from before.

    what: in words.
    overrides: what to append to the command line.
    """

    what: str
    overrides: tuple[str, ...]
    recipe: Recipe
    ranks: int


@dataclass(frozen=True)
class Advice:
    """The cheapest change that makes a run fit, or all that save memory where none does; and the plan after them."""

    changes: tuple[Change, ...]
    plan: Plan

    @property
    def text(self) -> str:
        """In words, with what to type."""
        if not self.plan.fits:
            return "none of the changes that were tried makes it fit; choose a smaller model or larger GPUs"
        words = ", and ".join(change.what for change in self.changes)
        typed = " ".join(override for change in self.changes for override in change.overrides)
        return f"{words}: {typed}"


def with_fields(recipe: Recipe, section: str, **fields: object) -> Recipe:
    """The recipe with some fields of a section changed."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})


def with_bits(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with the backbone in 4 or 8 bits, or (16) not quantized."""
    if bits == (recipe.quantization.bits or 16):
        return recipe
    # The options of other bits would do nothing.
    kept = {"skip_modules"} & recipe.quantization.model_fields_set if bits < 16 else set()
    fields = {name: getattr(recipe.quantization, name) for name in kept}
    if bits < 16:
        fields[f"load_in_{bits}bit"] = True
    return recipe.model_copy(update={"quantization": QuantizationSection(**fields)})


def problems_of(recipe: Recipe) -> list[str]:
    """Rules that a changed recipe breaks."""
    return [str(problem) for problem in broken_rules({name: getattr(recipe, name) for name in Recipe.model_fields})]


def advise(recipe: Recipe, ranks: int, memory_bytes: int, nodes: int = 1) -> Advice:
    """The first single change that makes the run fit, else the first combination, going from cheap to dear.

    Args:
        recipe: that does not fit.
        ranks: of all nodes.
        memory_bytes: of a GPU.
        nodes: that the ranks are on.

    Raises:
        ValueError: for whatever the user can correct.
    """

    def planned(change: Change) -> Plan:
        return plan(change.recipe, ranks=change.ranks, memory_bytes=memory_bytes, compare_checkpointing=False)

    for change in changes(recipe, ranks, nodes):
        result = planned(change)
        if result.fits:
            return Advice((change,), result)
    taken: list[Change] = []
    best = plan(recipe, ranks=ranks, memory_bytes=memory_bytes, compare_checkpointing=False)
    for kind in _KINDS:
        chosen = None
        for change in _allowed(kind(recipe, ranks, nodes)):
            result = planned(change)
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


def changes(recipe: Recipe, ranks: int, nodes: int = 1) -> Iterator[Change]:
    """Single changes that the recipe's rules allow, from the cheapest on."""
    for kind in _KINDS:
        yield from _allowed(kind(recipe, ranks, nodes))


def _allowed(found: Iterator[Change]) -> Iterator[Change]:
    return (change for change in found if not problems_of(change.recipe))


def _smaller_evaluation(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    rows = recipe.training.per_device_eval_batch_size
    while rows > 1:
        rows //= 2
        changed = with_fields(recipe, "training", per_device_eval_batch_size=rows)
        overrides = (f"training.per_device_eval_batch_size={rows}",)
        yield Change(f"evaluate {rows} rows at a time", overrides, changed, ranks)


def _checkpointing(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    if not recipe.training.gradient_checkpointing:
        yield Change(
            "recompute activations",
            ("training.gradient_checkpointing=true",),
            with_fields(recipe, "training", gradient_checkpointing=True),
            ranks,
        )


def _smaller_batches(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    training = recipe.training
    factor = 2
    while training.per_device_train_batch_size % factor == 0:
        fields = {
            "per_device_train_batch_size": training.per_device_train_batch_size // factor,
            "gradient_accumulation_steps": training.gradient_accumulation_steps * factor,
            # Evaluation has no gradients to accumulate: its batch can shrink by itself.
            "per_device_eval_batch_size": max(1, training.per_device_eval_batch_size // factor),
        }
        overrides = tuple(f"training.{name}={value}" for name, value in fields.items())
        changed = with_fields(recipe, "training", **fields)
        yield Change("halve the batch" if factor == 2 else f"batches of a {factor}th", overrides, changed, ranks)
        factor *= 2


def _fewer_bits(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    bits = recipe.quantization.bits or 16
    for fewer in (8, 4):
        if fewer < bits:
            changed = with_bits(recipe, fewer)
            fields = changed.quantization.model_dump(mode="json", exclude_unset=True)
            yield Change(f"{fewer} bits", (f"quantization='{json.dumps(fields)}'",), changed, ranks)


def _double_quantization(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    if recipe.quantization.bits == 4 and not recipe.quantization.bnb_4bit_use_double_quant:
        yield Change(
            "quantize the scales",
            ("quantization.bnb_4bit_use_double_quant=true",),
            with_fields(recipe, "quantization", bnb_4bit_use_double_quant=True),
            ranks,
        )


def _sharing(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    distributed = recipe.distributed
    if ranks > 1 and (distributed.deepspeed in ("zero2", None) or distributed.shard_backbone is False):
        yield Change(
            "share the backbone",
            ("distributed.deepspeed=zero3", "distributed.shard_backbone=true"),
            with_fields(recipe, "distributed", deepspeed="zero3", shard_backbone=True),
            ranks,
        )


def _more_ranks(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    more = 2 * ranks
    while more <= MOST_RANKS:
        shared = with_fields(recipe, "distributed", deepspeed="zero3", shard_backbone=True)
        settings = ("distributed.deepspeed=zero3", "distributed.shard_backbone=true") if shared != recipe else ()
        yield Change(f"share over {more} GPUs", (f"--gpus {more // nodes}", *settings), shared, more)
        more *= 2


def _offloading(recipe: Recipe, ranks: int, nodes: int) -> Iterator[Change]:
    if recipe.distributed.deepspeed != "zero3_offload":
        changed = with_fields(recipe, "distributed", deepspeed="zero3_offload", shard_backbone=True)
        overrides = ("distributed.deepspeed=zero3_offload", "distributed.shard_backbone=true")
        yield Change("keep the weights in the CPU's memory", overrides, changed, ranks)


_KINDS = (
    _checkpointing,
    _smaller_evaluation,
    _smaller_batches,
    _fewer_bits,
    _double_quantization,
    _sharing,
    _more_ranks,
    _offloading,
)
