"""Templates of the methods that let the language model answer: text with {text}, {text_pair} and {answer} in it."""

from __future__ import annotations

from collections import Counter
from string import Formatter
from typing import NamedTuple

ANSWER = "answer"
DEFAULT_TEMPLATE = "{text} Answer: {answer}"
DEFAULT_PAIR_TEMPLATE = "{text} {text_pair} Answer: {answer}"
"""Used where the recipe has none; the answer comes last, so they suit decoders too."""


class Piece(NamedTuple):
    """Characters of a template, and the slot behind them (None at the end)."""

    literal: str
    slot: str | None


def parse_template(template: str, pair: bool) -> tuple[Piece, ...]:
    """A template's pieces, in order.

    Args:
        template: as the recipe has it; braces that are none of a slot's are written twice.
        pair: whether there is a second text.

    Raises:
        ValueError: in half a sentence, for slots that are unknown, missing or there twice.
    """
    wanted = ["text", *(["text_pair"] if pair else []), ANSWER]
    try:
        parsed = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("has a single brace") from None
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise ValueError("has a slot with a format of its own")
    found = Counter(slot for _, slot, _, _ in parsed if slot is not None)
    if strangers := sorted(set(found) - set(wanted)):
        raise ValueError(f"has the unknown slot {{{strangers[0]}}}")
    for slot in wanted:
        if found[slot] != 1:
            raise ValueError(f"has {{{slot}}} {found[slot]} times" if found[slot] else f"lacks {{{slot}}}")
    return tuple(Piece(literal, slot) for literal, slot, _, _ in parsed)
