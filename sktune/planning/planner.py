"""The plan of a run: bytes on each rank and bytes moved, from the recipe and the model's configuration alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from sktune.backbone.lower_blocks import beside_the_blocks, leave_out
from sktune.backbone.one_by_one import check_read_one_by_one
from sktune.data.state_codes import kept_form
from sktune.errors import UserError
from sktune.model.identity import texts_of
from sktune.planning.activations import count_activations, keeps_states
from sktune.planning.frozen_bytes import frozen_bytes, whole_bytes
from sktune.planning.gathered import gathered_bytes
from sktune.planning.report import NOT_INCLUDED, USABLE, Moment, Plan, gibibytes
from sktune.planning.skeleton import find_skeleton
from sktune.planning.trained_bytes import FP32, engine_of, trained_bytes
from sktune.recipe import Recipe


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
        UserError: for whatever the user can correct.
    """
    if ranks < 1:
        raise UserError(f"ranks: {ranks}; allowed: 1 or more")
    notes, training = [], recipe.training
    shared = recipe.distributed.shard_backbone if shard_backbone is None else shard_backbone
    if shared == "auto":
        shared, reason = True, "the ranks share the backbone, where no memory is given"
        if memory_bytes is not None:
            shared, reason = choose_sharding(recipe, ranks, memory_bytes)
        notes.append(f"distributed.shard_backbone is auto: {reason}")
    skeleton = find_skeleton(recipe)
    model = skeleton.build()
    if not model.trainable_parameters():
        notes.append(f"{recipe.method.name} trains nothing: what is said of training is of an evaluation batch")
    trainable, parameters = model.parameter_counts()
    off = training.model_copy(update={"frozen_states": "off", "stream_frozen_blocks": False})
    all_blocks = recipe.model_copy(update={"training": off})
    keeps, streams = keeps_states(recipe, model), training.stream_frozen_blocks
    if training.frozen_states != "off" and model.frozen_blocks:
        width, kept = kept_form(model.backbone.hidden_size, model.backbone.dtype, training.frozen_states_in_8bit)
        token = width * kept.itemsize
        notes.append(
            f"training.frozen_states: besides, {token:,} bytes for each token of the data, in memory or on disk"
        )
        if not keeps:
            notes.append("training.frozen_states is auto: all blocks are counted, as it depends on the data")
    beside = 0
    if keeps and streams:
        check_read_one_by_one(model.backbone, recipe.method.visible_prefix and bool(texts_of(model.method)))
        parts = [part for _, part in beside_the_blocks(model.backbone)]
        beside = whole_bytes([*parts, *model.backbone.blocks[0].modules()])
    if keeps:
        leave_out(model.backbone, model.frozen_blocks)
    engine = engine_of(recipe, model, shared, ranks)
    alive = count_activations(skeleton, engine)
    checkpointing = training.gradient_checkpointing
    activations = {checkpointing: alive["after_forward"] - alive["resting"]}
    if compare_checkpointing:
        changed = training.model_copy(update={"gradient_checkpointing": not checkpointing})
        other = replace(skeleton, recipe=recipe.model_copy(update={"training": changed}))
        found = count_activations(other, engine, only_forward=True)
        activations[not checkpointing] = found["after_forward"] - found["resting"]
    gathered = gathered_bytes(engine, model, ranks, checkpointing, alive["blocks_in_backward"])
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    frozen = frozen_bytes(model, ranks if engine.sharded else 1, dtype, engine.parameters_on_host)
    trained = trained_bytes(engine, model, recipe, ranks)

    # Stages 1 and 2 make their moments at the start, and their buckets for backward alone.
    replicated = engine.stage in (1, 2)
    in_backward = engine.buckets if replicated else 0
    at_start = frozen.total + trained.weights + trained.copies + trained.gradients
    at_start += trained.moments if replicated else engine.buckets
    settled = at_start + (0 if replicated else trained.moments)
    after = settled + alive["after_backward"] + gathered.at_rest
    live: dict[Moment, int] = {
        "after_load": at_start,
        "after_forward": settled + alive["after_forward"] + gathered.at_rest,
        "in_backward": settled + alive["in_backward"] + gathered.in_backward + in_backward,
        # Without DeepSpeed whole gradients are among what is alive.
        "after_backward": after + (trained.gradients_of_a_step if engine.stage else 0),
        "after_step": after - (0 if engine.stage else trained.gradients_of_a_step),
        "in_evaluation": settled + alive["in_evaluation"] + gathered.in_evaluation,
        "at_checkpoint": settled + alive["resting"] + gathered.at_rest + 3 * trainable * FP32,  # weights and moments
    }
    load_peak, reading_peak = max(frozen.load_peak, at_start), None
    if keeps and streams:
        reading = count_activations(replace(skeleton, recipe=all_blocks), engine)
        reading_peak = at_start + beside + reading["evaluation_peak"]
    elif keeps:
        reading_plan = plan(all_blocks, ranks=ranks, shard_backbone=shared, compare_checkpointing=False)
        load_peak, reading_peak = reading_plan.load_peak, reading_plan.evaluation_peak
        live["after_load"] = reading_plan.live["after_load"]
    without_activations = settled + alive["resting"] + gathered.embeddings
    in_head = sum(p.numel() for name, p in model.trainable_parameters().items() if name.startswith("head."))
    head = trained.weights * in_head // max(trainable, 1)
    steps = training.gradient_accumulation_steps
    return Plan(
        model=recipe.model.name_or_path,
        bits=recipe.quantization.bits or 8 * dtype.itemsize,
        ranks=ranks,
        engine=engine.name,
        sharded=engine.sharded,
        gradient_checkpointing=checkpointing,
        batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=steps,
        parameters=parameters,
        trainable=trainable,
        memory=memory_bytes,
        assumptions=(*skeleton.assumptions, *notes, NOT_INCLUDED),
        live=live,
        packed=frozen.packed,
        scales=frozen.scales,
        rest=frozen.rest,
        buffers=frozen.buffers,
        adapter=trained.weights - head,
        head=head,
        trained_copies=trained.copies,
        gradients=trained.gradients + trained.gradients_of_a_step,
        buckets=engine.buckets,
        moments=trained.moments,
        semantics=alive["resting"],
        host=frozen.host + trained.host,
        activations=activations[checkpointing],
        logits=alive["logits"],
        gathered=max(gathered.at_rest, gathered.in_evaluation, gathered.in_backward),
        largest_dequantized=frozen.largest_dequantized,
        activations_with_checkpointing=activations.get(True),
        activations_without_checkpointing=activations.get(False),
        load_peak=load_peak,
        reading_peak=reading_peak,
        training_peak=max(
            without_activations,
            settled + alive["forward_peak"] + gathered.forward_most,
            settled + alive["backward_peak"] + gathered.most + in_backward,
            live["after_backward"] + trained.update,
        ),
        evaluation_peak=max(without_activations, settled + alive["evaluation_peak"] + gathered.forward_most),
        gathered_per_forward=gathered.forward,
        gathered_per_step=steps * (gathered.forward + gathered.backward) + (gathered.at_rest if ranks > 1 else 0),
        gathered_per_evaluation=gathered.forward,
        reduced_per_step=trainable * FP32 * (steps if engine.stage >= 2 else 1) if ranks > 1 else 0,
    )


def choose_sharding(recipe: Recipe, ranks: int, memory_bytes: int) -> tuple[bool, str]:
    """Whether to share the backbone, and the reason in a sentence: copies where they fit, as nothing is gathered then.

    Args:
        recipe: as training reads it.
        ranks: of the run.
        memory_bytes: that each rank can use.

    Raises:
        UserError: for whatever the user can correct.
    """
    if ranks == 1:
        return False, "there is one rank, so the backbone is not shared"
    copied = plan(recipe, ranks=ranks, shard_backbone=False, compare_checkpointing=False)
    needed, usable = gibibytes(copied.peak), gibibytes(int(USABLE * memory_bytes))
    amount = f"{needed} at its peak, and {USABLE:.0%} of a rank's memory are {usable}"
    if copied.peak <= USABLE * memory_bytes:
        return False, f"a copy of the backbone on each rank fits ({amount}), so no weights have to be gathered"
    return True, f"the ranks share the backbone, since a copy on each does not fit ({amount})"
