"""The plan of a run: bytes on each rank and bytes moved, from the recipe and the model's configuration alone."""

from __future__ import annotations

import torch

from sktune.planning.engine import FP32, Engine, TrainedBytes, engine_of, trained_bytes
from sktune.planning.frozen_bytes import FrozenBytes, frozen_bytes
from sktune.planning.numbers import numbers_of, run_of
from sktune.planning.parts import find_parts
from sktune.planning.planned_bytes import NOT_INCLUDED, Moment, Plan
from sktune.planning.timeline import Numbers
from sktune.recipe.recipe import Recipe
from sktune.tasks import TunedModel


def plan(
    recipe: Recipe,
    *,
    ranks: int = 1,
    memory_bytes: int | None = None,
    shard_backbone: bool | None = None,
    compare_checkpointing: bool = True,
) -> Plan:
    """Plans a run of a recipe.

    Args:
        recipe: as training would read it.
        ranks: processes, one for each GPU; started by `deepspeed` where the recipe names a configuration.
        memory_bytes: of each rank's GPU, for the verdict; None: no verdict.
        shard_backbone: with ZeRO-3, whether the ranks share the backbone; None: as the recipe says, and for `auto`
            whatever `choose_sharding` chooses (shared, where no memory is given).
        compare_checkpointing: also count activations with gradient checkpointing the other way.

    Raises:
        ValueError: for whatever the user can correct.
    """
    if ranks < 1:
        raise ValueError(f"ranks: {ranks}; allowed: 1 or more")
    notes: list[str] = []
    if shard_backbone is None:
        shard_backbone = _as_the_recipe_says(recipe, ranks, memory_bytes, notes)
    parts = find_parts(recipe)
    model = parts.build()
    if not model.trainable_parameters():
        notes.append(f"{recipe.method.name} trains nothing: what is said of training is of an evaluation batch")
    engine = engine_of(recipe, model, shard_backbone, ranks)
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    return _put_together(
        recipe=recipe,
        ranks=ranks,
        memory=memory_bytes,
        model=model,
        engine=engine,
        numbers=numbers_of(parts, model, engine, ranks),
        other_activations=run_of(parts.with_recipe(_other_checkpointing(recipe)), model, engine).activations()
        if compare_checkpointing
        else None,
        frozen=frozen_bytes(model.backbone, ranks if engine.sharded else 1, dtype, engine.parameters_on_host),
        trained=trained_bytes(engine, model, recipe, ranks),
        assumptions=(*parts.assumptions, *notes, NOT_INCLUDED),
    )


def _other_checkpointing(recipe: Recipe) -> Recipe:
    on = not recipe.training.gradient_checkpointing
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"gradient_checkpointing": on})})


def _as_the_recipe_says(recipe: Recipe, ranks: int, memory: int | None, notes: list[str]) -> bool:
    choice = recipe.distributed.shard_backbone
    if choice != "auto":
        return choice
    if memory is None:
        notes.append("the backbone is shared among the ranks (distributed.shard_backbone is auto: give the memory)")
        return True
    from sktune.planning.choice import choose_sharding

    sharded, reason = choose_sharding(recipe, ranks, memory)
    notes.append(f"distributed.shard_backbone is auto: {reason}")
    return sharded


def _put_together(
    *,
    recipe: Recipe,
    ranks: int,
    memory: int | None,
    model: TunedModel,
    engine: Engine,
    numbers: Numbers,
    other_activations: int | None,
    frozen: FrozenBytes,
    trained: TrainedBytes,
    assumptions: tuple[str, ...],
) -> Plan:
    trainable, parameters = model.parameter_counts()
    in_head = sum(p.numel() for name, p in model.trainable_parameters().items() if name.startswith("head."))
    head = trained.weights * in_head // max(trainable, 1)
    text = sum(buffer.nbytes for name, buffer in model.named_buffers() if not name.startswith("backbone."))
    training = recipe.training
    kept, checkpointing = numbers["activations"], training.gradient_checkpointing

    at_start = frozen.total + text + trained.weights + trained.copies + trained.gradients
    at_start += trained.buckets if engine.stage == 3 else trained.moments if engine.stage else 0
    settled = at_start + (0 if engine.stage in (1, 2) else trained.moments)
    live = _live(numbers, engine, trained, at_start, settled, trainable)
    backward = trained.buckets if engine.stage in (1, 2) else 0
    steps = training.gradient_accumulation_steps
    received = {name: numbers[f"received/{name}"] for name in ("forward", "backward", "update", "evaluation")}
    return Plan(
        model=recipe.model.name_or_path,
        bits=recipe.quantization.bits or 8 * getattr(torch, recipe.model.dtype).itemsize,
        ranks=ranks,
        engine=engine.name,
        sharded=engine.sharded,
        gradient_checkpointing=checkpointing,
        batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=steps,
        parameters=parameters,
        trainable=trainable,
        packed=frozen.packed,
        scales=frozen.scales,
        rest=frozen.rest,
        buffers=frozen.buffers + text,
        adapter=trained.weights - head,
        head=head,
        trained_copies=trained.copies,
        gradients=trained.gradients + trained.gradients_of_a_step,
        buckets=trained.buckets,
        moments=trained.moments,
        semantics=numbers["resting"],
        activations=kept,
        activations_with_checkpointing=kept if checkpointing else other_activations,
        activations_without_checkpointing=other_activations if checkpointing else kept,
        logits=numbers["logits"],
        gathered=max(value for name, value in numbers.items() if name.startswith("gathered/")),
        largest_dequantized=frozen.largest_dequantized,
        load_peak=max(frozen.load_peak, live["after_load"]),
        training_peak=max(
            settled + max(numbers["peak/forward"], numbers["peak/backward"]) + backward,
            live["after_backward"] + trained.update,
        ),
        evaluation_peak=settled + numbers["peak/evaluation"],
        live=live,
        host=frozen.host + trained.host,
        gathered_per_forward=received["forward"],
        gathered_per_step=steps * (received["forward"] + received["backward"]) + received["update"],
        gathered_per_evaluation=received["evaluation"],
        reduced_per_step=trainable * FP32 * (steps if engine.stage >= 2 else 1) if ranks > 1 else 0,
        memory=memory,
        assumptions=assumptions,
    )


def _live(
    numbers: Numbers, engine: Engine, trained: TrainedBytes, at_start: int, settled: int, trainable: int
) -> dict[Moment, int]:
    def held(moment: str) -> int:
        return settled + numbers[f"live/{moment}"] + numbers[f"gathered/{moment}"]

    # Without DeepSpeed whole gradients are among what the dry run holds.
    kept = trained.gradients_of_a_step if engine.stage else 0
    gone = 0 if engine.stage else trained.gradients_of_a_step
    saved = 3 * trainable * FP32  # weights and two moments, whole
    return {
        "after_load": at_start,
        "after_forward": held("after_forward"),
        "in_backward": held("in_backward") + (trained.buckets if engine.stage in (1, 2) else 0),
        "after_backward": held("after_backward") + kept,
        "after_step": held("after_step") - gone,
        "in_evaluation": held("in_evaluation"),
        "at_checkpoint": held("at_checkpoint") + saved,
    }
