"""Reading the blocks that nothing changes once for each example, and training on what they gave (docs/depth.md).

Where all that trains sits in the upper blocks, the states of an input below them are constants. They are computed once,
before the first step, and kept in memory or on disk; the blocks themselves are then let go.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import torch
from rich import filesize

import sktune
from sktune.allocator import give_back_freed_memory
from sktune.backbone.lower_blocks import recorded
from sktune.backbone.weights import weight_files
from sktune.data import Row
from sktune.data.state_codes import kept_form
from sktune.distributed.engine import Engine
from sktune.distributed.node import node_of
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import FROZEN_STATES, FROZEN_STATES_FOLDER
from sktune.model.identity import digest, digest_of_each, texts_of
from sktune.recipe import Recipe
from sktune.training.auto_states import choose_place, why_not
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup
from sktune.training.state_files import StateFile, make_together
from sktune.training.state_reading import read_through
from sktune.training.stopping import deferred
from sktune.training.streamed_states import TEXT, fill_one_by_one, text_of

logger = logging.getLogger(__name__)

Splits = dict[str, list[Row] | None]
TOLERANCE = 0.05
"""Largest difference of a model's last states, of the largest one, that going on from kept ones may make: rounding,
since a batch may be padded to another width here than when they were read, and they may be kept in 8 bits."""


@torch.no_grad()
@deferred()
def keep_frozen_states(
    setup: Setup, engine: Engine, splits: Splits, ranks: Ranks, epochs: float, shared: Path | None = None
) -> Splits:
    """The rows of all splits with what the frozen blocks make of them, where the recipe wants that; collective.

    The blocks are gone afterwards: every pass of this run then has to read rows of these splits.

    Args:
        setup: the run's parts.
        engine: runs the model; nothing has been read yet.
        splits: encoded rows by the split's name; None: the run has no such split.
        ranks: share the reading.
        epochs: how often the training split is to be read.
        shared: a folder for this run and others, where the recipe names none.

    Raises:
        UserError: where nothing is frozen, where there is no room, and for a model that cannot go on from its states.
        Stopped: before a batch, on all ranks, where one was told to stop.
    """
    training, model = setup.recipe.training, setup.model
    rows = {name: split for name, split in splits.items() if split}
    if training.stream_frozen_blocks and (texts := text_of(setup)):
        rows[TEXT] = texts
    files = _files_of(setup, rows, ranks, epochs, shared)
    if not files:
        return splits
    width, dtype = model.backbone.hidden_size, model.backbone.dtype
    setup.collator.filler_states = torch.zeros(1, width, dtype=dtype)
    engine.set_training(False)
    states = _found_or_read(setup, engine, rows, files)
    kept: Splits = dict(splits)
    for name, split in splits.items():
        if split:
            ends = accumulate(row.length for row in split)
            kept[name] = [
                replace(row, states=states[name][end - row.length : end]) for row, end in zip(split, ends, strict=True)
            ]
    if training.stream_frozen_blocks:
        # Without a text a method may still read one token, to learn which module attends in which layer.
        model.text_states = states.get(TEXT, torch.zeros(1, width, dtype=dtype))[None].to(ranks.device)
    elif _goes_on(setup, engine, next(split for split in kept.values() if split), ranks):
        engine.release_lower_blocks()
    else:
        setup.collator.filler_states, kept = None, splits
    give_back_freed_memory()
    engine.set_training(True)
    if kept is not splits:
        logger.info(
            "frozen states: %s of %s, after block %d of %d; those blocks are not run or held any more",
            filesize.decimal(sum(file.nbytes for file in files.values())),
            ", ".join(split for split in rows if split != TEXT), model.frozen_blocks, len(model.backbone.blocks),
        )  # fmt: skip
    return kept


def _files_of(
    setup: Setup, rows: Mapping[str, Sequence[Row]], ranks: Ranks, epochs: float, shared: Path | None
) -> dict[str, StateFile]:
    """Where the states of each split are to be kept; none where the recipe, or `auto`, keeps none. Collective.

    Raises:
        UserError: where nothing is frozen.
    """
    training, model, node = setup.recipe.training, setup.model, node_of(ranks)
    mode: str = training.frozen_states
    if mode == "off" or not rows:
        return {}
    if mode == "auto" and (reason := why_not(setup, epochs, shared is not None)):
        if model.frozen_blocks or "frozen_states" in training.model_fields_set:
            logger.info("training.frozen_states: auto is off: %s", reason)
        return {}
    if model.frozen_blocks == 0:
        raise UserError(
            f"training.frozen_states: {setup.recipe.method.name} changes what every block of the model reads, so no "
            "states stay the same; set method.layers (1/2, for example), or frozen_states: off"
        )
    of_others = training.frozen_states_dir or shared
    folder = Path(of_others or Path(setup.recipe.output.dir) / FROZEN_STATES_FOLDER)
    key = _key(setup, ranks)
    names = {name: f"{name}-{_key_of_rows(key, split)}" for name, split in rows.items()}

    def files_in(place: Path | None) -> dict[str, StateFile]:
        width, dtype = kept_form(model.backbone.hidden_size, model.backbone.dtype, training.frozen_states_in_8bit)
        shapes = {name: (sum(row.length for row in split), width) for name, split in rows.items()}
        return {name: StateFile(place, names[name], model.frozen_blocks, shapes[name], dtype, node) for name in rows}

    if mode == "auto":
        on_disk = files_in(folder).values()
        missing = sum(file.nbytes for file in on_disk if not file.is_there)
        mode, reason = choose_place(sum(file.nbytes for file in on_disk), missing, folder, node, of_others is not None)
        if mode == "off" and training.stream_frozen_blocks:
            mode = "disk"  # which says what there is no room for
        logger.info("training.frozen_states: auto is %s: %s", mode, reason)
    return {} if mode == "off" else files_in(folder if mode == "disk" else None)


def _found_or_read(
    setup: Setup, engine: Engine, rows: Mapping[str, Sequence[Row]], files: Mapping[str, StateFile]
) -> dict[str, torch.Tensor]:
    """States of each split, [tokens, d] or packed: of its file, or read through the frozen blocks; collective."""
    node = next(iter(files.values())).node
    found = {name: states for name, file in files.items() if (states := file.find()) is not None}
    for name in found:
        logger.info("frozen states of %s: read from %s", name, files[name].path)
    missing = {name: file for name, file in files.items() if name not in found}
    with_text = {TEXT: files[TEXT]} if missing and TEXT in files else {}
    block, below = 0, dict[str, torch.Tensor]()
    if not setup.recipe.training.frozen_states_in_8bit:  # what is rounded once is not read on from, and rounded again
        block, below = _from_a_lower_block({**missing, **with_text}, node.ranks)
    if setup.recipe.training.stream_frozen_blocks:
        return found | make_together(missing, lambda arrays: fill_one_by_one(setup, rows, arrays, node, block, below))
    for name, file in missing.items():
        states_below = (block, below[name]) if below else None
        found[name] = file.make(partial(read_through, setup, engine, rows[name], name, node, states_below))
    return found


def forget_frozen_states(recipe: Recipe, ranks: Ranks) -> None:
    """Takes from each machine's disk what only this run, now at its end, could read."""
    if ranks.local_rank == 0 and recipe.training.frozen_states_dir is None:
        remove_frozen_states(Path(recipe.output.dir))


def remove_frozen_states(output: Path) -> None:
    """Removes what runs have kept in a folder of theirs; whatever else lies there stays."""
    with suppress(OSError):
        for file in (file for pattern in FROZEN_STATES for file in output.glob(pattern)):
            file.unlink(missing_ok=True)
        (output / FROZEN_STATES_FOLDER).rmdir()


def _from_a_lower_block(wanted: Mapping[str, StateFile], ranks: Ranks) -> tuple[int, dict[str, torch.Tensor]]:
    """What runs of fewer frozen blocks have left of all that is wanted: after how many blocks, and the states.

    0 and nothing where there is none. Collective.
    """
    common = set.intersection(*(file.blocks_below() for file in wanted.values())) if wanted else set()
    for block in ranks.broadcast(sorted(common, reverse=True)):
        found = {name: states for name, file in wanted.items() if (states := file.at(block).find()) is not None}
        if len(found) == len(wanted):
            logger.info("frozen states of %s: go on from those after block %d", ", ".join(found), block)
            return block, found
    return 0, {}


def _key(setup: Setup, ranks: Ranks) -> str:
    """Digest of all that the states depend on to the last bit, but for the block and the rows.

    A resumed run then equals itself.
    """
    recipe, model = setup.recipe, setup.model
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(recipe.model)]
    # The text's own keys and values are what lower blocks see of a prefix.
    texts = [part.input_ids.tolist() for part in texts_of(model.method)]
    return digest(
        {
            "model": recipe.model.model_dump(mode="json"),
            "quantization": recipe.quantization.model_dump(mode="json"),
            "files": files,
            "text": texts if recipe.method.visible_prefix else None,
            "batch": recipe.training.per_device_eval_batch_size,
            **({"8 bits": True} if recipe.training.frozen_states_in_8bit else {}),
            "made by": [sktune.__version__, torch.__version__, platform.machine(), str(model.backbone.dtype)],
            "device": ranks.device.type,
        }
    )


def _key_of_rows(key: str, rows: Sequence[Row]) -> str:
    return digest_of_each(chain([key], ((row.input_ids, row.token_type_ids) for row in rows)))


def _goes_on(setup: Setup, engine: Engine, rows: Sequence[Row], ranks: Ranks) -> bool:
    """Whether a batch's last states, from kept ones, are those of the whole model up to rounding; collective.

    Raises:
        UserError: where they are not, and the recipe does not leave it to `auto`.
    """
    size, backbone = setup.recipe.training.per_device_eval_batch_size, setup.model.backbone
    chosen = sorted(rows, key=lambda row: -row.length)[:size]
    batch = model_inputs(setup.collator(chosen), ranks.device)
    # A language model may go past the base's own forward (OPT), but not past its last block.
    end = backbone.blocks[-1] if backbone.is_language_model else backbone.base
    with recorded(backbone, backbone.blocks[0]), recorded(backbone, end) as found:
        engine(**{name: tensor for name, tensor in batch.items() if name != "frozen_states"}, num_items_in_batch=1)
        read_whole = found[-1]
        engine(**batch, num_items_in_batch=1)
    real = torch.arange(found[-1].shape[1]) < torch.tensor([row.length for row in chosen])[:, None]
    kept, whole = (states[real.to(states.device)].float() for states in (found[-1], read_whole))
    worst = max(ranks.gather(float((kept - whole).abs().max() / whole.abs().max())))
    logger.info("frozen states: the last ones of a batch are within %.1e of the whole model's", worst)
    if worst <= TOLERANCE:
        return True
    in_8_bits = setup.recipe.training.frozen_states_in_8bit
    what = (
        f"training.frozen_states: {backbone.family} does not go on from the states of its lower blocks"
        f"{', kept in 8 bits' if in_8_bits else ''}: its last states differ by {worst:.2g} of the largest"
    )
    if setup.recipe.training.frozen_states != "auto":
        raise UserError(f"{what}; set {'frozen_states_in_8bit: false, or ' if in_8_bits else ''}frozen_states: off")
    logger.warning("%s, so none are kept", what)
    return False
