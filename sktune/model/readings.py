"""Random tokens, read by the plain model and as a tuning method has them read; see `step_zero`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sktune.backbone import NOTHING, Backbone, Woven, read_keys_and_values
from sktune.backbone.vocabulary import padding_token
from sktune.backbone.weaving import routed_to
from sktune.errors import UserError, first_line
from sktune.library_internals import attention_of, supports
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText, ordinary_tokens
from sktune.model.padding import RightAligned

Way = Literal["prefix", "prompt", "nothing"]


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


class Readings:
    """Readings of one backbone; every rank makes the same ones."""

    def __init__(
        self, backbone: Backbone, method: Method, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> None:
        self.backbone, self.method, self.device = backbone, method, device
        self.words = torch.tensor(ordinary_tokens(tokenizer, backbone))
        self.padding = padding_token(tokenizer, backbone.vocabulary_size)
        self.generator = torch.Generator().manual_seed(0)

    # -- what is read -----------------------------------------------------------------------------------------

    def start(self) -> Start | None:
        """Of the method; None where it starts as nothing that can be said."""
        starts_as = self.method.config.starts_as
        woven = self._reading(lambda: self.method(self.backbone))
        way: Way = "prefix" if woven.prefix else "prompt" if woven.prompt is not None else "nothing"
        if starts_as == "text":
            texts = [module.input_ids for module in self.method.modules() if isinstance(module, PromptText)]
            assert len(texts) == 1
            return Start(way, texts[0], lambda: self.method(self.backbone))
        if starts_as == "model":
            return Start(way, self.drawn(0), lambda: self.method(self.backbone))
        # It starts from noise, which nothing is equal to; a text woven in the same way has to be.
        return None if way == "nothing" else self.stand_in(way, self.method.positions)

    def stand_in(self, way: Way, length: int) -> Start:
        """Random tokens woven in a way, as a text would be."""
        text = self.drawn(length if way != "nothing" else 0)

        def weave() -> Woven:
            if way == "nothing":
                return NOTHING
            embeds = self.backbone.embed(text)
            if way == "prompt":
                return Woven(prompt=embeds)
            semantics = read_keys_and_values(self.backbone, embeds, self.method.config.name)
            return Woven(prefix=semantics.prefix(semantics.states))

        return Start(way, text, weave)

    def drawn(self, length: int) -> torch.Tensor:
        """[1, length] ordinary tokens, the same on every rank."""
        chosen = torch.randint(len(self.words), (1, length), generator=self.generator)
        return self.words[chosen].to(self.device)

    def padded(self, rows: Sequence[torch.Tensor], side: str = "right") -> Rows:
        """Rows [1, tokens] as one batch."""
        longest = max(row.shape[1] for row in rows)
        pads = [(0, longest - row.shape[1]) if side == "right" else (longest - row.shape[1], 0) for row in rows]
        ids = [F.pad(row, pad, value=self.padding) for row, pad in zip(rows, pads, strict=True)]
        masks = [F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
        return Rows(torch.cat(ids), torch.cat(masks))

    # -- reading --------------------------------------------------------------------------------------------------

    def plain(self, start: Start, rows: Rows) -> torch.Tensor:
        """The plain model's hidden states [B, L, d] of right-padded rows behind the text."""
        base, count, kernel = self.backbone.base, start.text.shape[1], attention_of(self.backbone.base.config)
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
            if self.backbone.attn_implementation == "flash_attention_2":  # which takes no such mask
                kernel = "sdpa" if supports(base, "sdpa") else "eager"
        if "use_cache" in inspect.signature(base.forward).parameters:
            inputs["use_cache"] = False
        with routed_to(base.config, kernel):
            states: torch.Tensor = self._reading(lambda: base(**inputs)[0], plain=True)
        return states[:, count:]

    def woven(self, start: Start, rows: Rows) -> torch.Tensor:
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

    def states(self, read: Callable[[], object]) -> dict[int, torch.Tensor]:
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
