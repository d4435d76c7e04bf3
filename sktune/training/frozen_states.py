"""Reading the blocks that nothing changes once for each example, and training on what they gave (docs/depth.md).

Where all that trains sits in the upper blocks, the states of an input below them are constants. They are computed once,
before the first step, and kept in memory or on disk; the blocks themselves are then let go.
"""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich import filesize

import sktune
from sktune.allocator import give_back_freed_memory
from sktune.backbone.lower_blocks import recorded
from sktune.backbone.weights import weight_files
from sktune.data import Row
from sktune.distributed.engine import Engine
from sktune.distributed.node import Node, node_of
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import FROZEN_STATES, FROZEN_STATES_FOLDER
from sktune.model.identity import digest, digest_of_each, texts_of
from sktune.progress import progress
from sktune.recipe import Recipe
from sktune.training.evaluate import model_inputs
from sktune.training.filling import Filling
from sktune.training.setup import Setup
from sktune.training.state_files import SHARED_MEMORY, StateFile, make_together
from sktune.training.stopping import agree, deferred
from sktune.training.streamed_states import TEXT, fill_one_by_one, state_batches, text_of

logger = logging.getLogger(__name__)

Splits = dict[str, list[Row] | None]
OF_FREE_MEMORY = 4
"""`auto` keeps states in memory where they take at most this part of what is free: a quarter."""
LEAST_SHARE = 4
"""`auto` keeps states where at least this part of the blocks is frozen: a quarter."""
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""
TOLERANCE = 0.05
"""Largest difference of a model's last states, of the largest one, that going on from kept ones may make: rounding,
since a batch may be padded to another width here than when they were read."""


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
    mode: str = training.frozen_states
    if mode == "off" or not rows:
        return splits
    count, width, dtype = model.frozen_blocks, model.backbone.hidden_size, model.backbone.dtype
    if mode == "auto" and (reason := _why_not(setup, epochs, shared is not None)):
        logger.info("training.frozen_states: auto is off: %s", reason)
        return splits
    if count == 0:
        raise UserError(
            f"training.frozen_states: {setup.recipe.method.name} changes what every block of the model reads, so no "
            "states stay the same; set method.layers (1/2, for example), or frozen_states: off"
        )
    node, key = node_of(ranks), _key(setup, ranks)
    if training.stream_frozen_blocks and (texts := text_of(setup)):
        rows[TEXT] = texts
    names = {name: f"{name}-{_key_of_rows(key, split)}" for name, split in rows.items()}
    tokens = {name: sum(row.length for row in split) for name, split in rows.items()}
    nbytes = sum(tokens.values()) * width * dtype.itemsize
    of_others = training.frozen_states_dir or shared
    folder = Path(of_others or Path(setup.recipe.output.dir) / FROZEN_STATES_FOLDER)

    def files_in(place: Path | None) -> dict[str, StateFile]:
        return {name: StateFile(place, names[name], count, (tokens[name], width), dtype, node) for name in rows}

    if mode == "auto":
        missing_bytes = sum(file.nbytes for file in files_in(folder).values() if not file.is_there)
        mode, reason = _choice(nbytes, missing_bytes, folder, node, of_others is not None)
        if mode == "off" and training.stream_frozen_blocks:
            mode = "disk"  # which says what there is no room for
        logger.info("training.frozen_states: auto is %s: %s", mode, reason)
        if mode == "off":
            return splits
    files = files_in(folder if mode == "disk" else None)
    found = {name: states for name, file in files.items() if (states := file.find()) is not None}
    for name in found:
        logger.info("frozen states of %s: read from %s", name, files[name].path)
    missing = {name: file for name, file in files.items() if name not in found}
    setup.collator.filler_states = torch.zeros(1, width, dtype=dtype)
    read_along = {TEXT: files[TEXT]} if missing and TEXT in files else {}
    block, below = _from_a_lower_block({**missing, **read_along}, ranks)
    engine.set_training(False)
    if training.stream_frozen_blocks:
        found |= make_together(missing, lambda arrays: fill_one_by_one(setup, rows, arrays, node, block, below))
    else:
        for name, file in missing.items():
            states_below = (block, below[name]) if below else None
            found[name] = file.make(partial(_fill, setup, engine, rows[name], name, node, states_below))
    if training.stream_frozen_blocks:
        # Without a text a method may still read one token, to learn which module attends in which layer.
        model.text_states = found.get(TEXT, torch.zeros(1, width, dtype=dtype))[None].to(ranks.device)
    result: Splits = dict(splits)
    for name, split in splits.items():
        if split:
            ends = accumulate(row.length for row in split)
            result[name] = [
                replace(row, states=found[name][end - row.length : end]) for row, end in zip(split, ends, strict=True)
            ]
    if not training.stream_frozen_blocks:
        off = _difference(setup, engine, next(kept for kept in result.values() if kept), ranks)
        if off > TOLERANCE:
            what = (
                f"training.frozen_states: {model.backbone.family} does not go on from the states of its lower blocks: "
                f"its last states differ by {off:.2g} of the largest"
            )
            if training.frozen_states != "auto":
                raise UserError(f"{what}; set frozen_states: off")
            logger.warning("%s, so all blocks are run", what)
            setup.collator.filler_states = None
            engine.set_training(True)
            return splits
        engine.release_lower_blocks()
    give_back_freed_memory()
    engine.set_training(True)
    logger.info(
        "frozen states: %s of %s, after block %d of %d; those blocks are not run or held any more",
        filesize.decimal(nbytes), ", ".join(split for split in rows if split != TEXT), count,
        len(model.backbone.blocks),
    )  # fmt: skip
    return result


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


def _why_not(setup: Setup, epochs: float, shared: bool) -> str | None:
    """Why `auto` keeps no states, whatever room there is; `shared`: with the other cells of a comparison."""
    training, count = setup.recipe.training, setup.model.frozen_blocks
    if count == 0:
        return "the method changes what every block reads"
    if training.stream_frozen_blocks or training.frozen_states_dir is not None:
        return None
    if count * LEAST_SHARE < len(setup.model.backbone.blocks):
        return f"the method changes what all but {count} blocks read"
    if epochs < 1 or (epochs == 1 and not shared):
        return "no example is read twice"
    return None


def _choice(
    nbytes: int, missing: int, folder: Path, node: Node, shared: bool
) -> tuple[Literal["memory", "disk", "off"], str]:
    """Where `auto` keeps states of so many bytes, and why; the same on all ranks, collective.

    Args:
        nbytes: of all states.
        missing: those that are not in the folder yet.
        folder: on each machine's disk.
        node: this machine.
        shared: the folder is for other runs too.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = min(node.ranks.gather(_free_memory(node.size > 1)))
    on_disk = min(node.ranks.gather(shutil.disk_usage(there).free - missing))
    size = filesize.decimal(nbytes)
    if nbytes * OF_FREE_MEMORY <= free and not shared:
        return "memory", f"{size} of {filesize.decimal(free)} that are free"
    if on_disk < 0:
        return "off", f"{filesize.decimal(-on_disk)} more than are free in {folder} would be needed"
    if shared:
        return "disk", f"other runs can use what is kept in {folder}"
    return "disk", f"{size} would be much of the {filesize.decimal(free)} of memory that are free"


def _free_memory(several_ranks: bool) -> int:
    """Bytes that this machine, or the container's limit, leaves; of shared memory, where ranks have to share."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no limit
        limit, used = (int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return min(free, shutil.disk_usage(SHARED_MEMORY).free) if several_ranks else free


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
            "made by": [sktune.__version__, torch.__version__, platform.machine(), str(model.backbone.dtype)],
            "device": ranks.device.type,
        }
    )


def _key_of_rows(key: str, rows: Sequence[Row]) -> str:
    return digest_of_each(chain([key], ((row.input_ids, row.token_type_ids) for row in rows)))


def _fill(
    setup: Setup,
    engine: Engine,
    rows: Sequence[Row],
    split: str,
    node: Node,
    below: tuple[int, torch.Tensor] | None,
    array: torch.Tensor,
    filling: Filling | None,
) -> None:
    """Reads a split through the frozen blocks, each row once on every machine, into [tokens, d].

    Args:
        setup: the run's parts.
        engine: runs the model.
        rows: of the split.
        split: its name.
        node: the ranks that share the reading.
        below: a number of blocks and the states [tokens, d] after them, to go on from; None: from the tokens.
        array: to be filled.
        filling: its file, which knows how much is there already; None: it has none.
    """
    batches = state_batches(setup, rows, array, node)
    done = 0 if filling is None else filling.batches_done(len(batches))
    if done:
        logger.info("frozen states of %s: go on after %d of %d batches", split, done, len(batches))

    def read(rows: Sequence[Row | None], **options: Any) -> torch.Tensor:
        batch = setup.collator(rows)
        names = _READ if options else _READ - {"frozen_states"}
        given = model_inputs({name: batch[name] for name in batch if name in names}, node.ranks.device)
        states = engine(**given, **options, only_frozen=True).frozen_states
        assert states is not None
        return states

    after: dict[str, Any] = {}
    sources = batches
    if below is not None:
        after, sources = {"frozen_states_after": below[0]}, state_batches(setup, rows, below[1], node)
        if setup.model.backbone.blocks_give_tuples is None:
            read(sources[0].chosen())  # a pass through all of them shows in which form blocks give states
    with progress(f"reading frozen states of {split}", len(batches), "batches", done=done) as advance:
        for number in range(done, len(batches)):
            agree(node.ranks)
            if filling is not None:
                filling.note(number, len(batches))
            batches[number].put(read(sources[number].chosen(with_states=below is not None), **after))
            advance(1)


_READ = frozenset({"input_ids", "attention_mask", "token_type_ids", "frozen_states"})


def _difference(setup: Setup, engine: Engine, rows: Sequence[Row], ranks: Ranks) -> float:
    """How far a batch's last states, from kept ones, are from the whole model's, as part of the largest; collective."""
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
    return worst
