"""Which tokens of a running text belong to which of its words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

# How a leading space looks as a token of its own: SentencePiece and byte-level BPE.
_SPACE_MARKS = "▁Ġ"


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Words joined by single spaces, and the position of each word's first character."""
    starts = []
    position = 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    return " ".join(words), starts


def words_of_tokens(
    text: str, starts: Sequence[int], offsets: Sequence[tuple[int, int]], pieces: Sequence[str]
) -> list[int]:
    """For each token the number of its word, or -1.

    A token belongs to the word that holds the first character of its span that is not a space. Special tokens
    (empty spans) and lone space marks belong to no word; a space mark is known by its piece too, as
    tokenizers that put one in front of the text give it the span of the first word's first character.

    Args:
        text: the words joined by single spaces.
        starts: position of each word's first character.
        offsets: character span of each token.
        pieces: each token as the tokenizer writes it.
    """
    result = []
    for (start, end), piece in zip(offsets, pieces, strict=True):
        while start < end and text[start] == " ":
            start += 1
        if start >= end or (piece and not piece.strip(_SPACE_MARKS) and piece[-1] not in text[start:end]):
            result.append(-1)
        else:
            result.append(bisect_right(starts, start) - 1)
    return result


def labelled_pieces(
    count: int,
    kept: Sequence[int],
    whole: Sequence[int],
    labelled_piece: Literal["first", "last"],
    truncation_side: str,
) -> list[int]:
    """For each word the position of the token that carries its tag, or -1.

    Args:
        count: number of words.
        kept: word of each token that was kept.
        whole: word of each token before the text was cut (the same where it was not).
        labelled_piece: which piece of a word carries its tag. A word that lost that piece to the cut has
            none.
        truncation_side: the end at which the text was cut, `left` or `right`.
    """
    first = [-1] * count
    last = [-1] * count
    pieces_kept = [0] * count
    for position, word in enumerate(kept):
        if word >= 0:
            pieces_kept[word] += 1
            last[word] = position
            if first[word] < 0:
                first[word] = position
    positions = first if labelled_piece == "first" else last
    if len(whole) != len(kept) and (labelled_piece == "last") == (truncation_side == "right"):
        missing = list(pieces_kept)
        for word in whole:
            if word >= 0:
                missing[word] -= 1
        positions = [-1 if lost < 0 else position for position, lost in zip(positions, missing, strict=True)]
    return positions
