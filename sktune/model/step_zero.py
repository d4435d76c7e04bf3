"""Before training: read with what a method weaves in, the user's own model gives what it gives as it is.

Which families a way of weaving suits cannot be listed, so it is tried: random tokens are read as the method has them
read, and by the plain model, called with token ids and a mask and without any code of ours.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sktune.backbone import NOTHING, Backbone, Woven, read_keys_and_values
from sktune.backbone.architecture import slides_a_window
from sktune.backbone.vocabulary import padding_token
from sktune.errors import UserError, first_line
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText, ordinary_tokens
from sktune.model.padding import RightAligned
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
FLOOR_FACTOR, MOST = 8.0, 5.0
"""A difference so many times that of the plain model from itself is rounding too, up to `MOST` times `LEAST`."""

Way = Literal["prefix", "prompt", "nothing"]
INSTEAD: tuple[tuple[Way, str], ...] = (("prompt", "sk_prompt"), ("nothing", "lora"))
"""What to use where a way of weaving holds, the best first."""


class Rows(NamedTuple):
    """Rows of an input: token ids and mask [B, L], padded on the right or on the left."""

    ids: torch.Tensor
    mask: torch.Tensor

    def real(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Of states [B, L, d], each row's [tokens, d] in fp32."""
        return [row[kept].float() for row, kept in zip(states, self.mask.bool(), strict=True)]


class Start(NamedTuple):
    """What the plain model has to read, for its states to be those of a method at its start."""

    way: Way
    text: torch.Tensor
    """[1, P] token ids in front of every row; [1, 0] where there is none."""
    weave: Callable[[], Woven]


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
        max_length: tokens of the longest input, which is tried too.
        padding_side: on which inputs will be padded.
        run: calls the model, where something stands around it (an engine); on all ranks.
        worst: the largest of all ranks' values.

    Raises:
        UserError: where they differ by more than rounding: by how much, from which block on, and what to use instead.
    """
    if _has_no_values(model):
        return
    check = _Check(model.backbone, model.method, tokenizer, max_length, padding_side, worst)
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


def _has_no_values(model: nn.Module) -> bool:
    parameters = list(model.parameters())
    return any(p.is_meta for p in parameters) or detect_fake_mode(parameters) is not None


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

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        padding_side: str,
        worst: Callable[[float], float],
    ) -> None:
        self.backbone, self.method, self.worst = backbone, method, worst
        self.max_length, self.side = max_length, padding_side
        self.words = torch.tensor(ordinary_tokens(tokenizer, backbone))
        self.padding = padding_token(tokenizer, backbone.vocabulary_size)
        self.generator = torch.Generator().manual_seed(0)

    def compare(self) -> None:
        """Raises: UserError."""
        name, family = self.method.config.name, self.backbone.family
        start = self._start()
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

    def _start(self) -> Start | None:
        starts_as = self.method.config.starts_as
        woven = self._reading(lambda: self.method(self.backbone))
        way: Way = "prefix" if woven.prefix else "prompt" if woven.prompt is not None else "nothing"
        if starts_as == "text":
            texts = [module.input_ids for module in self.method.modules() if isinstance(module, PromptText)]
            assert len(texts) == 1
            return Start(way, texts[0], lambda: self.method(self.backbone))
        if starts_as == "model":
            return Start(way, self._drawn(0), lambda: self.method(self.backbone))
        # It starts from noise, which nothing is equal to; a text woven in the same way has to be.
        return None if way == "nothing" else self._stand_in(way, self.method.positions)

    def _stand_in(self, way: Way, length: int) -> Start:
        text = self._drawn(length if way != "nothing" else 0)

        def weave() -> Woven:
            if way == "nothing":
                return NOTHING
            embeds = self.backbone.embed(text)
            if way == "prompt":
                return Woven(prompt=embeds)
            semantics = read_keys_and_values(self.backbone, embeds, self.method.config.name)
            return Woven(prefix=semantics.prefix(semantics.states))

        return Start(way, text, weave)

    def _compared(self, start: Start) -> Found | None:
        """None where there is nothing that can be compared."""
        room = self._room(start)
        if room < 1:
            return None
        self.generator.manual_seed(1)
        short = [self._drawn(min(length, room)) for length in SHORT]
        # Each row by itself: where padding changes what the plain model reads, a batch of it is no measure.
        plain = [self._plain(start, self._rows([row], "right"))[0].float() for row in short]
        batch = self._rows(short, "right")
        floor = self._difference(plain, batch.real(self._plain(start, batch)))
        if not math.isfinite(floor):
            return None  # the model's own states overflow on such tokens
        rounding = self._rounding()
        tolerated = min(max(rounding, FLOOR_FACTOR * floor), MOST * rounding)
        padded = self._rows(short, self.side)
        differs = self._difference(plain, padded.real(self._woven(start, padded)))
        found = Found(differs, tolerated, batch.ids.shape[1], False)
        length = min(self.max_length, room)
        if not found.holds or length <= SHORT[0]:
            return found
        long = self._rows([self._drawn(length)], "right")
        differs = self._difference(long.real(self._plain(start, long)), long.real(self._woven(start, long)))
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

    def _drawn(self, length: int) -> torch.Tensor:
        """[1, length] ordinary tokens, the same on every rank."""
        chosen = torch.randint(len(self.words), (1, length), generator=self.generator)
        return self.words[chosen].to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def _rows(self, rows: Sequence[torch.Tensor], side: str) -> Rows:
        longest = max(row.shape[1] for row in rows)
        pads = [(0, longest - row.shape[1]) if side == "right" else (longest - row.shape[1], 0) for row in rows]
        ids = [F.pad(row, pad, value=self.padding) for row, pad in zip(rows, pads, strict=True)]
        masks = [F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
        return Rows(torch.cat(ids), torch.cat(masks))

    # -- reading --------------------------------------------------------------------------------------------------

    def _plain(self, start: Start, rows: Rows) -> torch.Tensor:
        """The plain model's hidden states [B, L, d] of right-padded rows behind the text."""
        base, count = self.backbone.base, start.text.shape[1]
        inputs: dict[str, Any] = {
            "input_ids": torch.cat((start.text.expand(len(rows.ids), -1), rows.ids), dim=1),
            "attention_mask": F.pad(rows.mask, (count, 0), value=1),
        }
        if start.way == "prefix" and self.backbone.is_encoder:
            # An encoder's text is read before there is an input: it does not see any.
            text = torch.arange(count + rows.ids.shape[1], device=rows.ids.device) < count
            visible = inputs["attention_mask"][:, None].bool() & (~text[:, None] | text)
            lowest = torch.finfo(self.backbone.dtype).min
            inputs["attention_mask"] = torch.zeros(visible.shape, dtype=self.backbone.dtype, device=visible.device)
            inputs["attention_mask"] = inputs["attention_mask"].masked_fill(~visible, lowest)[:, None]
        if "use_cache" in inspect.signature(base.forward).parameters:
            inputs["use_cache"] = False
        states: torch.Tensor = self._reading(lambda: base(**inputs)[0], plain=True)
        return states[:, count:]

    def _woven(self, start: Start, rows: Rows) -> torch.Tensor:
        """Hidden states [B, L, d] of rows as the tuned model reads them."""
        aligned = RightAligned(rows.mask)

        def read() -> torch.Tensor:
            woven = start.weave()
            embeds = self.backbone.embed(aligned.forth(rows.ids))
            states = aligned.restore(self.backbone.read(embeds, aligned.attention_mask, woven))
            if states.shape[-1] != self.backbone.hidden_size:
                raise UserError(
                    f"method.name: {self.backbone.family} gives {states.shape[-1]} features for a token where its "
                    f"configuration says {self.backbone.hidden_size}; choose another model"
                )
            return states

        return self._reading(read)

    def _reading(self, read: Callable[[], Any], plain: bool = False) -> Any:
        """What `read` returns; what the model itself raises becomes a refusal."""
        try:
            return read()
        except (UserError, torch.OutOfMemoryError, torch.distributed.DistError):
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            family, name = self.backbone.family, self.method.config.name
            if plain:
                raise UserError(
                    f"method.name: {family} does not read token ids and a mask alone ({first_line(e)}); choose another "
                    "model"
                ) from e
            raise UserError(
                f"method.name: {name} is not available for this {family}, which cannot be read with what it adds "
                f"({first_line(e)}); use another method, or choose another model"
            ) from e

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
            if isinstance(module, nn.Linear) and module.weight.dtype == torch.int8 and module.weight.is_cuda:
                dtypes.add(torch.bfloat16)  # LLM.int8 rounds activations
        return max(LEAST[dtype] for dtype in dtypes if dtype in LEAST)

    def _first_block(self, start: Start, found: Found) -> str:
        """Where the states begin to differ, in words; reads the input that shows it again."""
        self.generator.manual_seed(1)
        drawn = [self._drawn(min(length, self._room(start))) for length in SHORT]
        rows = [self._drawn(found.length)] if found.short_agrees else drawn
        plain, padded = self._rows(rows, "right"), self._rows(rows, "right")
        expected = self._states(lambda: self._plain(start, plain))
        states = self._states(lambda: self._woven(start, padded))
        depth = len(self.backbone.blocks)
        for number in range(1, depth + 1):
            if number in expected and number in states:
                length = plain.ids.shape[1]
                pair = (plain.real(of[number][:, -length:]) for of in (expected, states))
                if self._difference(*pair) > found.tolerated:
                    return f"block {number} of {depth}"
        return "the end of its blocks"

    def _states(self, read: Callable[[], object]) -> dict[int, torch.Tensor]:
        """What each block gives, [B, positions, d] on the CPU, by its number from 1."""
        kept: dict[int, torch.Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: Any) -> None:
                states = output if isinstance(output, torch.Tensor) else output[0]
                if states.ndim == 3:
                    kept[number] = states.cpu()

            return hook

        handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(self.backbone.blocks, 1)]
        try:
            read()
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def _instead(self, way: Way) -> str:
        """A way of weaving that was tried and holds, in words."""
        ways = [other for other, _ in INSTEAD]
        for other, methods in INSTEAD[ways.index(way) + 1 if way in ways else 0 :]:
            try:
                found = self._compared(self._stand_in(other, STAND_IN))
            except UserError:
                continue
            if found is not None and found.holds:
                return f"{methods}, which was tried and holds"
        return "another model: no method was found that holds on this one"
