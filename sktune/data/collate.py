"""Rows to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from sktune.data.examples import ABSENT, Row


class Collator:
    """Pads rows into one batch.

    Args:
        pad_token_id: fills `input_ids` where `attention_mask` is 0.
        padding_side: where the padding goes.
        task_name: `task.name` of the recipe, which decides the form of the labels.
        with_answers: rows say where the language model answers.
    """

    def __init__(
        self, pad_token_id: int, padding_side: Literal["right", "left"], task_name: str, with_answers: bool = False
    ) -> None:
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.labels_per_token = task_name in ("token_classification", "causal_lm")
        self.labels_are_numbers = task_name == "regression"
        self.with_answers = with_answers

    def __call__(self, rows: Sequence[Row | None]) -> dict[str, torch.Tensor]:
        """Make a batch of rows, where None is a filler.

        A filler repeats the first row that is there (or, in a batch of fillers, one token), so no attention
        row is empty; its labels do not count.

        Returns:
            `input_ids` and `attention_mask` [B, L] int64, `token_type_ids` [B, L] int64 where the rows have
            them; `labels`: [B] int64 for classification, [B] float32 for regression, [B, L] int64 with one
            per token for token_classification and causal_lm; -100 (regression: 0) where there is none;
            `valid` [B] bool, False for fillers; `index` [B] int64, the row's number in its split, -1 for
            fillers; `answer_positions` [B] int64 with answers, counted without padding. B is at least 1.
        """
        present = next((row for row in rows if row is not None), None)
        filler = present or Row(-1, [self.pad_token_id], None, 0, "")
        filled = [row or filler for row in rows] or [filler]
        valid = [row is not None for row in rows] or [False]
        width = max(row.length for row in filled)

        batch = {
            "input_ids": self._padded([row.input_ids for row in filled], self.pad_token_id, width),
            "attention_mask": self._padded([[1] * row.length for row in filled], 0, width),
            "labels": self._labels(filled, valid, width),
            "valid": torch.tensor(valid, dtype=torch.bool),
            "index": torch.tensor([row.index if v else -1 for row, v in zip(filled, valid, strict=True)]),
        }
        segments = [row.token_type_ids for row in filled if row.token_type_ids is not None]
        if segments:
            batch["token_type_ids"] = self._padded(segments, 0, width)
        if self.with_answers:
            batch["answer_positions"] = torch.tensor([row.answer or 0 for row in filled])
        return batch

    def _padded(self, sequences: Sequence[Sequence[int]], fill: int, width: int) -> torch.Tensor:
        padded = []
        for sequence in sequences:
            padding = [fill] * (width - len(sequence))
            padded.append([*padding, *sequence] if self.padding_side == "left" else [*sequence, *padding])
        return torch.tensor(padded, dtype=torch.int64)

    def _labels(self, rows: Sequence[Row], valid: Sequence[bool], width: int) -> torch.Tensor:
        if self.labels_per_token:
            per_token: list[list[int]] = []
            for row, counts in zip(rows, valid, strict=True):
                assert not counts or isinstance(row.labels, list)
                per_token.append(row.labels if counts and isinstance(row.labels, list) else [])
            return self._padded(per_token, ABSENT, width)
        absent = 0 if self.labels_are_numbers else ABSENT
        values = [row.labels if counts else absent for row, counts in zip(rows, valid, strict=True)]
        return torch.tensor(values, dtype=torch.float32 if self.labels_are_numbers else torch.int64)
