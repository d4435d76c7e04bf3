"""Cutting texts to so many tokens and leaving them texts, for what is tokenized only with its surroundings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from sktune.data.examples import Example

_Spans = list[tuple[int, int]]
_CHUNK = 1000


def token_counts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """Tokens of each example's text, of a pair both together, without special tokens."""
    return [sum(map(len, spans)) for spans in _spans_of(tokenizer, examples)]


def cut_texts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], keep: int) -> list[Example]:
    """The examples with texts of at most `keep` tokens; of a pair both together, the longer text giving first.

    The tokenizer's own truncation side loses its end.
    """
    cut = []
    for example, spans in zip(examples, _spans_of(tokenizer, examples), strict=True):
        shares = _shares([len(part) for part in spans], keep)
        texts = [
            _kept(text, part, share, tokenizer.truncation_side)
            for text, part, share in zip(_texts(example), spans, shares, strict=True)
        ]
        cut.append(replace(example, text=texts[0], text_pair=texts[1] if len(texts) > 1 else None))
    return cut


def _texts(example: Example) -> list[str]:
    return [example.text] if example.text_pair is None else [example.text, example.text_pair]


def _spans_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Iterator[list[_Spans]]:
    """For each example, the characters of each token of its text or texts."""
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        texts = [text for example in chunk for text in _texts(example)]
        batch = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        spans = iter(batch["offset_mapping"])
        for example in chunk:
            yield [[(int(s), int(e)) for s, e in next(spans)] for _ in _texts(example)]


def _shares(lengths: Sequence[int], keep: int) -> list[int]:
    if sum(lengths) <= keep:
        return list(lengths)
    if len(lengths) == 1:
        return [keep]
    first, second = lengths
    first = min(first, max(keep - second, keep - keep // 2))
    return [first, keep - first]


def _kept(text: str, spans: _Spans, share: int, side: str) -> str:
    if share == len(spans):
        return text
    if share == 0:
        return ""
    return text[spans[-share][0] :] if side == "left" else text[: spans[share - 1][1]]
