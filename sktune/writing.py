"""Texts that a tuned language model writes: several prompts at once, greedily or drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sktune.data import Row
from sktune.data.collate import padded
from sktune.errors import UserError
from sktune.training.setup import Setup


@dataclass(frozen=True)
class Writing:
    """How texts are written.

    max_new_tokens: the most tokens of each; None: what the task says.
    temperature: 0 writes the likeliest token; above, one is drawn, from flatter probabilities the higher it is.
    top_p: only tokens that together have this probability are drawn from.
    stop: a text ends before the first of these.
    seed: of what is drawn.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def check(self) -> None:
        """Refuses what means nothing.

        Raises:
            UserError: naming the option.
        """
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens: {self.max_new_tokens}; allowed: 1 or more")
        if not 0 <= self.temperature <= 100:
            raise UserError(f"--temperature: {self.temperature}; allowed: 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p: {self.top_p}; allowed: above 0, up to 1")
        if self.top_p < 1 and self.temperature == 0:
            raise UserError("--top-p: nothing is drawn at temperature 0; give --temperature, 1 for example")
        if "" in self.stop:
            raise UserError("--stop: an empty text would end every answer; give some characters")


GREEDILY = Writing()


def prompt_of(row: Row) -> list[int]:
    """The tokens of a row that are no target."""
    assert isinstance(row.labels, list)
    return [token for token, label in zip(row.input_ids, row.labels, strict=True) if label < 0]


def write(
    setup: Setup,
    prompts: Sequence[Sequence[int]],
    writing: Writing = GREEDILY,
    decoding: AbstractContextManager[Any] | None = None,
    generate: Callable[..., torch.Tensor] | None = None,
    as_written: Callable[[str], None] | None = None,
) -> list[str]:
    """What the tuned language model writes after each of several prompts, up to its end token.

    Args:
        setup: of a trained adapter.
        prompts: token ids, at least one each; read in one batch.
        writing: how.
        decoding: inside it alone the tokenizer is used; None: whenever it is needed.
        generate: of the engine that runs the model; None: of the model, which is whole in this process.
        as_written: is given what is written to a single prompt, piece by piece.
    """
    model, tokenizer = setup.model, setup.tokenizer
    pad, width, device = setup.collator.pad_token_id, max(map(len, prompts)), model.backbone.base.device
    ids = padded(prompts, pad, width, "left").to(device)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, width, "left").to(device)
    drawn: dict[str, Any] = {"temperature": writing.temperature, "top_p": writing.top_p, "top_k": 0}
    config = GenerationConfig(
        do_sample=writing.temperature > 0,
        max_new_tokens=writing.max_new_tokens or setup.task.config.new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        **(drawn if writing.temperature > 0 else {}),
    )

    def texts_of(sequences: torch.Tensor) -> list[str]:
        with decoding or nullcontext():
            return [str(tokenizer.decode(row[width:].tolist(), skip_special_tokens=True)) for row in sequences]

    def ended(sequences: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        texts = texts_of(sequences)
        found = [any(stop in text for stop in writing.stop) for text in texts]
        return torch.tensor(found, device=sequences.device)

    # Not transformers' `stop_strings`, which wants to know every token's place in a text and fails for some tokenizers.
    criteria = StoppingCriteriaList([ended] if writing.stop else [])
    streamer = None if as_written is None else _Pieces(tokenizer, writing.stop, as_written)
    written = (generate or model.generate)(
        ids, mask, generation_config=config, stopping_criteria=criteria, streamer=streamer
    )
    return [_ended(text, writing.stop).strip() for text in texts_of(written)]


def _ended(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the texts that end it."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


class _Pieces(BaseStreamer):
    """Hands on what is written as soon as it is sure to be in the text: characters that are whole, no end of it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], as_written: Callable[[str], None]) -> None:
        self.tokenizer, self.stop, self.as_written = tokenizer, stop, as_written
        self.tokens: list[int] = []
        self.prompt_is_past = False
        self.given = ""

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_is_past:
            self.prompt_is_past = True
            return
        self.tokens += value.flatten().tolist()
        text = self._text()
        ends = (text[-size:] for size in range(1, len(text) + 1))
        begun = max((len(end) for end in ends if any(one.startswith(end) for one in self.stop)), default=0)
        self._give(text[: len(text) - begun].rstrip().rstrip("\ufffd"))

    def end(self) -> None:
        self._give(self._text().strip())

    def _text(self) -> str:
        return _ended(str(self.tokenizer.decode(self.tokens, skip_special_tokens=True)), self.stop).lstrip()

    def _give(self, text: str) -> None:
        if len(text) > len(self.given):
            self.as_written(text[len(self.given) :])
            self.given = text
