"""Before training: read with what a method weaves in, the user's own model gives what it gives as it is.

Which families a way of weaving suits cannot be listed, so it is tried: random tokens are read as the method has them
read, and by the plain model, called with token ids and a mask and without any code of ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone.architecture import slides_a_window
from sktune.errors import UserError
from sktune.library_internals import have_values
from sktune.model.readings import Readings, Start, Way
from sktune.model.tuned_model import TunedModel

logger = logging.getLogger(__name__)

SHORT = (7, 3)
"""Tokens of the short rows, which are read as one batch."""
STAND_IN = 8
"""Tokens that stand in for a text where another way of weaving is tried."""
LONG = 128
"""Tokens of the long row, where nothing says how long inputs will be."""
WINDOW = 4
"""Consecutive tokens that have to differ: rounding alone can move a single one (to another expert, say) far."""
LEAST = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""A difference that rounding explains, as a part of the norm of a token's hidden state."""
FLOOR_FACTOR, MOST = 4.0, 5.0
"""A difference so many times that of the plain model from itself is rounding too, up to `MOST` times `LEAST`."""

INSTEAD: tuple[tuple[Way, str], ...] = (("prompt", "sk_prompt"), ("nothing", "lora"))
"""What to use where a way of weaving holds, the best first."""


class Found(NamedTuple):
    """A comparison: the largest difference, what is tolerated, and tokens of the input that shows it."""

    difference: float
    tolerated: float
    length: int
    short_agrees: bool

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerated


def check_step_zero(
    model: TunedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    *,
    max_length: int = LONG,
    padding_side: str = "right",
    run: Callable[[], object] | None = None,
    worst: Callable[[float], float] = float,
) -> None:
    """Compares a method at its start with the plain model, on this model; logs the largest difference.

    Nothing is left of it: no cache, no gradient, no random number drawn.

    Args:
        model: nothing of it trained yet.
        tokenizer: the model's.
        device: where it reads.
        max_length: tokens of the longest input, which is tried too.
        padding_side: on which inputs will be padded.
        run: calls the model, where something stands around it (an engine); on all ranks.
        worst: the largest of all ranks' values.

    Raises:
        UserError: where they differ by more than rounding: by how much, from which block on, and what to use instead.
    """
    if not have_values(model.parameters()):
        return
    check = _Check(Readings(model.backbone, model.method, tokenizer, device), max_length, padding_side, worst)
    problems: list[UserError] = []

    def compare() -> None:
        try:
            check.compare()
        except UserError as error:  # an engine's forward is to end as it does
            problems.append(error)

    with _without_trace(model), torch.no_grad():
        model.eval()
        # ZeRO-3 gathers in passes that begin at the model that its engine holds.
        model.__dict__["forward"] = compare
        try:
            (run or model)()
        finally:
            del model.__dict__["forward"]
    if problems:
        raise problems[0]


@contextmanager
def _without_trace(model: TunedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.is_cuda}
    model.method.forget()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        model.method.forget()
        for module, mode in modes:
            module.training = mode


class _Check:
    """The comparison of one method on one backbone; every rank does the same."""

    def __init__(self, readings: Readings, max_length: int, padding_side: str, worst: Callable[[float], float]) -> None:
        self.readings, self.backbone, self.method = readings, readings.backbone, readings.method
        self.max_length, self.side, self.worst = max_length, padding_side, worst

    def compare(self) -> None:
        """Logs what was found.

        Raises:
            UserError: where they differ.
        """
        name, family = self.method.config.name, self.backbone.family
        start = self.readings.start()
        found = start and self._compared(start)
        if start is None or found is None:
            logger.info("step zero: %s was not compared with the plain %s", name, family)
            return
        what = "the text and the input together" if start.text.shape[1] else "the input"
        if found.holds:
            logger.info(
                "step zero: %s gives what the plain %s gives for %s: they differ by %.1e of a hidden state's size at "
                "most (up to %.0e is rounding)", name, family, what, found.difference, found.tolerated,
            )  # fmt: skip
            return
        block = self._first_block(start, found)
        shorter = ", while short inputs agree (lower data.max_length)" if found.short_agrees else ""
        raise UserError(
            f"method.name: {name} is not available for this {family}: before any training it must read as the plain "
            f"model reads {what}, and differs from it by {found.difference:.1e} of a hidden state's size (up to "
            f"{found.tolerated:.0e} is rounding), from {block} on, for an input of {found.length} tokens{shorter}; "
            f"use {self._instead(start.way)}; check_step_zero: false trains it all the same"
        )

    # -- what is compared -----------------------------------------------------------------------------------------

    def _compared(self, start: Start) -> Found | None:
        """None where there is nothing that can be compared."""
        room = self._room(start)
        if room < 1:
            return None
        self.readings.generator.manual_seed(1)
        short = [self.readings.drawn(min(length, room)) for length in SHORT]
        # Each row by itself: where padding changes what the plain model reads, a batch of it is no measure.
        plain = [self.readings.plain(start, self.readings.padded([row]))[0].float() for row in short]
        batch = self.readings.padded(short)
        floor = self._difference(plain, batch.real(self.readings.plain(start, batch)))
        if not math.isfinite(floor):
            return None  # the model's own states overflow on such tokens
        rounding = self._rounding()
        tolerated = min(max(rounding, FLOOR_FACTOR * floor), MOST * rounding)
        padded = self.readings.padded(short, self.side)
        differs = self._difference(plain, padded.real(self.readings.woven(start, padded)))
        found = Found(differs, tolerated, batch.ids.shape[1], False)
        length = min(self.max_length, room)
        if not found.holds or length <= SHORT[0]:
            return found
        long = self.readings.padded([self.readings.drawn(length)])
        expected = long.real(self.readings.plain(start, long))
        differs = self._difference(expected, long.real(self.readings.woven(start, long)))
        return Found(max(found.difference, differs), tolerated, length, differs > tolerated)

    def _room(self, start: Start) -> int:
        """Most tokens of an input that have to be as in the plain model."""
        limits = [self.max_length]
        if self.backbone.max_positions is not None:
            limits.append(self.backbone.max_positions - start.text.shape[1])
        if start.way == "prefix" and slides_a_window(self.backbone.config):
            # A prefix stays visible behind the window, where the plain model loses sight of the text.
            limits.append(int(self.backbone.config.sliding_window) - start.text.shape[1])
        return min(limits)

    # -- differences ----------------------------------------------------------------------------------------------

    def _difference(self, plain: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
        """The largest difference that `WINDOW` consecutive tokens have in common, relative to each; of all ranks."""
        largest = 0.0
        for expected, found in zip(plain, other, strict=True):
            relative = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
            values = [float(window.median()) for window in relative.split(WINDOW)]
            largest = max([largest, *(value if math.isfinite(value) else math.inf for value in values)])
        return self.worst(largest)

    def _rounding(self) -> float:
        """What the coarsest arithmetic in the model explains."""
        dtypes = {self.backbone.dtype}
        for module in self.backbone.modules():
            dtypes.add(getattr(module, "compute_dtype", None) or self.backbone.dtype)  # of a 4-bit product
            # Not `module.weight`: in a pass under ZeRO-3 to ask for it is to gather it, until the pass ends.
            own = module.parameters(recurse=False) if isinstance(module, nn.Linear) else ()
            if any(parameter.dtype == torch.int8 and parameter.is_cuda for parameter in own):
                dtypes.add(torch.bfloat16)  # LLM.int8 rounds activations
        return max(LEAST.get(dtype, LEAST[torch.float32]) for dtype in dtypes)

    def _first_block(self, start: Start, found: Found) -> str:
        """Where the states begin to differ, in words; reads the input that shows it again."""
        self.readings.generator.manual_seed(1)
        drawn = [self.readings.drawn(min(length, self._room(start))) for length in SHORT]
        rows = self.readings.padded([self.readings.drawn(found.length)] if found.short_agrees else drawn)
        try:
            depth = len(self.backbone.blocks)
        except UserError:  # a family without a list of them
            return "some layer"
        expected = self.readings.states(lambda: self.readings.plain(start, rows))
        states = self.readings.states(lambda: self.readings.woven(start, rows))
        for number in range(1, depth + 1):
            if number in expected and number in states:
                length = rows.ids.shape[1]
                pair = (rows.real(of[number][:, -length:]) for of in (expected, states))
                if self._difference(*pair) > found.tolerated:
                    return f"block {number} of {depth}"
        return "the end of its blocks"

    def _instead(self, way: Way) -> str:
        """A way of weaving that was tried and holds, in words."""
        ways = [other for other, _ in INSTEAD]
        for other, methods in INSTEAD[ways.index(way) + 1 if way in ways else 0 :]:
            try:
                with self.backbone.without_prefix_attention():
                    found = self._compared(self.readings.stand_in(other, STAND_IN))
            except UserError:
                continue
            if found is not None and found.holds:
                return f"{methods}, which was tried and holds"
        return "another model: no method was found that holds on this one"
