"""Reading the blocks that nothing changes once for each example, and training on what they gave (docs/depth.md).

Where all that trains sits in the upper blocks, the states of an input below them are constants. They are computed once,
before the first step, and kept in memory or on disk; the blocks themselves are then let go.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal

import psutil
import torch
from rich import filesize

import sktune
from sktune.allocator import give_back_freed_memory
from sktune.backbone.lower_blocks import recorded
from sktune.backbone.weights import weight_files
from sktune.data import Row
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import FROZEN_STATES_FOLDER
from sktune.methods.prompt_text import PromptText
from sktune.model.identity import digest, digest_of_each
from sktune.progress import progress
from sktune.recipe import Recipe
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup
from sktune.training.state_files import Node, StateFile, make_together, node_of
from sktune.training.stopping import agree, deferred
from sktune.training.streamed_states import TEXT, fill_one_by_one, state_batches, text_of

logger = logging.getLogger(__name__)

Splits = dict[str, list[Row] | None]
OF_FREE_MEMORY = 4
"""`auto` keeps states in memory where they take at most this part of what is free."""
TOLERANCE = 0.05
"""Largest difference of a model's last states, of the largest one, that going on from kept ones may make: rounding,
since a batch may be padded to another width here than when they were read."""


@torch.no_grad()
@deferred()
def keep_frozen_states(setup: Setup, engine: Engine, splits: Splits, ranks: Ranks, epochs: float) -> Splits:
    """The rows of all splits with what the frozen blocks make of them, where the recipe wants that; collective.

    The blocks are gone afterwards: every pass of this run then has to read rows of these splits.

    Args:
        setup: the run's parts.
        engine: runs the model; nothing has been read yet.
        splits: encoded rows by the split's name; None: the run has no such split.
        ranks: share the reading.
        epochs: how often the training split is to be read.

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
    tokens = {name: sum(row.length for row in split) for name, split in rows.items()}
    nbytes = sum(tokens.values()) * width * dtype.itemsize
    folder = Path(training.frozen_states_dir or Path(setup.recipe.output.dir) / FROZEN_STATES_FOLDER)
    if mode == "auto":
        mode, reason = ranks.broadcast(_choice(count, epochs, nbytes, training.frozen_states_dir is not None))
        logger.info("training.frozen_states: auto is %s: %s", mode, reason)
        if mode == "off":
            return splits
    if count == 0:
        raise UserError(
            f"training.frozen_states: {setup.recipe.method.name} changes what every block of the model reads, so no "
            "states stay the same; set method.layers (1/2, for example), or frozen_states: off"
        )
    node = node_of(ranks)
    key = _key(setup, count, ranks)
    place = folder if mode == "disk" else None
    if training.stream_frozen_blocks and (texts := text_of(setup)):
        rows[TEXT], tokens[TEXT] = texts, texts[0].length
    files = {
        name: StateFile(place, f"{name}-{_key_of_rows(key, split)}", (tokens[name], width), dtype, node)
        for name, split in rows.items()
    }
    found = {name: states for name, file in files.items() if (states := file.find()) is not None}
    for name in found:
        logger.info("frozen states of %s: read from %s", name, files[name].path)
    missing = {name: file for name, file in files.items() if name not in found}
    engine.set_training(False)
    if training.stream_frozen_blocks:
        found |= make_together(missing, lambda arrays: fill_one_by_one(setup, rows, arrays, node))
    else:
        for name, file in missing.items():
            found[name] = file.make(partial(_fill, setup, engine, rows[name], name, node))
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
    setup.collator.filler_states = torch.zeros(1, width, dtype=dtype)
    if not training.stream_frozen_blocks:
        _check(setup, engine, next(kept for kept in result.values() if kept), ranks)
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
        folder = Path(recipe.output.dir) / FROZEN_STATES_FOLDER
        with suppress(OSError):
            for split in ("train", "validation", "test", TEXT):
                for file in folder.glob(f"{split}-*"):
                    file.unlink()
            folder.rmdir()  # unless something of the user's is in it


def _choice(count: int, epochs: float, nbytes: int, has_folder: bool) -> tuple[Literal["memory", "disk", "off"], str]:
    if count == 0:
        return "off", "the method changes what every block reads"
    if epochs <= 1 and not has_folder:
        return "off", "no example is read twice"
    if has_folder:
        return "disk", "training.frozen_states_dir says where, for other runs too"
    free = psutil.virtual_memory().available
    if nbytes * OF_FREE_MEMORY <= free:
        return "memory", f"{filesize.decimal(nbytes)} of {filesize.decimal(free)} that are free"
    return "disk", f"{filesize.decimal(nbytes)} would be much of the {filesize.decimal(free)} of memory that are free"


def _key(setup: Setup, count: int, ranks: Ranks) -> str:
    """Digest of all that the states depend on to the last bit, but for the texts: a resumed run then equals itself."""
    recipe, model = setup.recipe, setup.model
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(recipe.model)]
    # The text's own keys and values are what lower blocks see of a prefix.
    texts = [part.input_ids.tolist() for part in model.method.modules() if isinstance(part, PromptText)]
    return digest(
        {
            "blocks": count,
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


def _fill(setup: Setup, engine: Engine, rows: Sequence[Row], split: str, node: Node, array: torch.Tensor) -> None:
    """Reads a split through the frozen blocks, each row once on every machine, into [tokens, d]."""
    batches = state_batches(setup, rows, array, node)
    with progress(f"reading frozen states of {split}", len(batches), "batches") as advance:
        for one in batches:
            agree(node.ranks)
            batch = setup.collator(one.chosen())
            read = model_inputs({name: batch[name] for name in batch if name in _READ}, node.ranks.device)
            states = engine(**read, only_frozen=True).frozen_states
            assert states is not None
            one.put(states)
            advance(1)


_READ = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def _check(setup: Setup, engine: Engine, rows: Sequence[Row], ranks: Ranks) -> None:
    """Holds one batch with its kept states against the whole model's reading of it; collective.

    Raises:
        UserError: where they differ by more than rounding.
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
    off = float((kept - whole).abs().max() / whole.abs().max())
    worst = max(ranks.gather(off))
    logger.info("frozen states: the last ones of a batch are within %.1e of the whole model's", worst)
    if not worst <= TOLERANCE:
        raise UserError(
            f"training.frozen_states: {setup.model.backbone.family} does not go on from the states of its lower "
            f"blocks: its last states differ by {worst:.2g} of the largest; set frozen_states: off"
        )
