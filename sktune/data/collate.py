"""Rows to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from sktune.data.examples import Row
from sktune.data.state_codes import is_packed, unpack

Side = Literal["right", "left"]


class Labelling(Protocol):
    """What collating asks of a task."""

    @property
    def answers_at_positions(self) -> bool:
        """Whether rows say where the language model answers."""
        ...

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """The labels of a batch; those of a filler (None) do not count."""
        ...


class Collator:
    """Pads rows into one batch.

    Args:
        pad_token_id: fills `input_ids` where `attention_mask` is 0.
        padding_side: where the padding goes.
        task: makes the labels.
    """

    def __init__(self, pad_token_id: int, padding_side: Side, task: Labelling) -> None:
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.task = task
        self.filler_states: torch.Tensor | None = None
        """[1, d], of the token of a batch of fillers, where rows come with `states`."""

    def __call__(self, rows: Sequence[Row | None]) -> dict[str, torch.Tensor]:
        """Make a batch of rows, where None is a filler.

        A filler repeats the first row that is there (or, in a batch of fillers, one token), so no attention
        row is empty; its labels do not count.

        Returns:
            `input_ids` and `attention_mask` [B, L] int64, `token_type_ids` [B, L] int64 where the rows have
            them; `labels` as the task makes them; `valid` [B] bool, False for fillers; `index` [B] int64, the row's
            number in its split, -1 for fillers; `answer_positions` [B] int64 where the language model answers, counted
            without padding; `frozen_states` [B, L, d], padded on the right, where they are kept. B is at least 1.
        """
        rows = list(rows) or [None]
        present = next((row for row in rows if row is not None), None)
        filler = present or Row(-1, [self.pad_token_id], None, 0, "", states=self.filler_states)
        filled = [filler if row is None else row for row in rows]
        width = max(row.length for row in filled)

        batch = {
            "input_ids": self._padded([row.input_ids for row in filled], self.pad_token_id, width),
            "attention_mask": self._padded([[1] * row.length for row in filled], 0, width),
            "labels": self.task.labels_of(rows, width, self.padding_side),
            "valid": torch.tensor([row is not None for row in rows], dtype=torch.bool),
            "index": torch.tensor([-1 if row is None else row.index for row in rows]),
        }
        segments = [row.token_type_ids for row in filled if row.token_type_ids is not None]
        if segments:
            batch["token_type_ids"] = self._padded(segments, 0, width)
        if self.task.answers_at_positions:
            batch["answer_positions"] = torch.tensor([row.answer or 0 for row in filled])
        kept = [self._states(row.states) for row in filled if row.states is not None]
        if kept and len(kept) == len(filled):
            batch["frozen_states"] = pad_sequence(kept, batch_first=True)
        return batch

    def _states(self, kept: torch.Tensor) -> torch.Tensor:
        if not is_packed(kept):
            return kept
        assert self.filler_states is not None
        return unpack(kept, self.filler_states.shape[1], self.filler_states.dtype)

    def _padded(self, sequences: Sequence[Sequence[int]], fill: int, width: int) -> torch.Tensor:
        return padded(sequences, fill, width, self.padding_side)


def padded(sequences: Sequence[Sequence[int]], fill: int, width: int, side: Side) -> torch.Tensor:
    """Sequences of at most `width` integers -> [B, width] int64, filled up on one side."""
    rows = []
    for sequence in sequences:
        padding = [fill] * (width - len(sequence))
        rows.append([*padding, *sequence] if side == "left" else [*sequence, *padding])
    return torch.tensor(rows, dtype=torch.int64)
