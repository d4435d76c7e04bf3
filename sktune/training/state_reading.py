"""Filling frozen states: the batches that are read, and reading them through all frozen blocks of a run's model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from sktune.data import Row, evaluation_batches
from sktune.data.state_codes import is_packed, pack
from sktune.distributed.engine import Engine
from sktune.distributed.node import Node
from sktune.progress import progress
from sktune.training.evaluate import model_inputs
from sktune.training.filling import Filling
from sktune.training.setup import Setup
from sktune.training.stopping import agree

logger = logging.getLogger(__name__)

_READ = frozenset({"input_ids", "attention_mask", "token_type_ids", "frozen_states"})


class StateBatch(NamedTuple):
    """A batch of a split whose states go into an array [tokens, d], or [tokens, packed width] uint8.

    rows, starts: of the split, and where the states of each begin.
    numbers: of the batch's rows; None for fillers.
    """

    rows: Sequence[Row]
    array: torch.Tensor
    starts: Sequence[int]
    numbers: Sequence[int | None]

    def chosen(self, with_states: bool = False) -> list[Row | None]:
        """Its rows, with what the array holds of them where that is wanted."""
        return [None if n is None else self._row(n, with_states) for n in self.numbers]

    def _row(self, n: int, with_states: bool) -> Row:
        row, start = self.rows[n], self.starts[n]
        return replace(row, states=self.array[start : start + row.length]) if with_states else row

    def put(self, states: torch.Tensor) -> None:
        """Keeps the states [B, L, d] of its rows, right-padded."""
        for of_row, n in zip(states, self.numbers, strict=True):
            if n is not None:
                start, length = self.starts[n], self.rows[n].length
                of_tokens = of_row[:length].cpu()
                self.array[start : start + length] = pack(of_tokens) if is_packed(self.array) else of_tokens


def state_batches(setup: Setup, rows: Sequence[Row], array: torch.Tensor, node: Node) -> list[StateBatch]:
    """This rank's batches of a split, each row once on every machine; as many on all ranks."""
    size, lengths = setup.recipe.training.per_device_eval_batch_size, [row.length for row in rows]
    starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    own = evaluation_batches(lengths, size, node.size, node.index)
    # Every rank takes part in every pass, and asks as often whether one was told to stop.
    own += [[None] * size] * (max(node.ranks.gather(len(own))) - len(own))
    return [StateBatch(rows, array, starts, numbers) for numbers in own]


def read_through(
    setup: Setup,
    engine: Engine,
    rows: Sequence[Row],
    split: str,
    node: Node,
    below: tuple[int, torch.Tensor] | None,
    array: torch.Tensor,
    filling: Filling | None,
) -> None:
    """Reads a split through the frozen blocks, each row once on every machine, into an array as `StateBatch` has it.

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
