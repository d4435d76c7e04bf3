"""Invented proper names: composed from syllables, and dealt out to the splits by their spelling.

No list of names exists anywhere. A name is drawn syllable by syllable and belongs to exactly one split,
decided by a checksum of its letters, so that the names of the evaluation files occur neither in the
labelled training files nor in the pretraining text.
"""

from __future__ import annotations

import random
import zlib
from typing import Literal, get_args

from sktune.embedded.lexicon import listed

Split = Literal["pretraining", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SHARES: dict[Split, range] = {
    "pretraining": range(0, 70),
    "train": range(70, 80),
    "validation": range(80, 88),
    "test": range(88, 100),
}
_ONSETS = listed("b br d dr f fl g gr h j k kr l m n p pr r s sk st t tr v w z")
_VOWELS = listed("a a e e i o o u ai ei")
_VOWEL_LETTERS = tuple("aeiou")
_CODAS = ["", "", "", "l", "n", "r", "s", "nd", "rt", "lk", "m", "v"]
# Endings say little about the kind of a name: what it names has to be read from the text around it.
_ENDINGS = listed("ov sen ic man er ak ley in ton a o en is el ix") + [""] * 5
NameKind = Literal["name", "nationality", "acronym"]


def split_of(word: str) -> Split:
    """The one split a name belongs to (stable across machines and Python versions)."""
    bucket = zlib.crc32(word.lower().encode()) % 100
    return next(split for split, share in _SHARES.items() if bucket in share)


class NameMaker:
    """Draws names of one split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split = split

    def draw(self, kind: NameKind) -> str:
        """One name word of the wanted kind, capitalised, that belongs to this maker's split."""
        while True:
            word = self._spell(kind)
            if split_of(word) == self.split:
                return word

    def _spell(self, kind: NameKind) -> str:
        if kind == "acronym":
            return "".join(self.rng.choice("ABCDEFGHIKLMNOPRSTUVW") for _ in range(3))
        choice = self.rng.choice
        ending = "ese" if kind == "nationality" else choice(_ENDINGS)
        stem = choice(_ONSETS) + choice(_VOWELS) + choice(_CODAS)
        # A bare two-letter stem is no name, and one syllable alone is too easily a word.
        if not ending or len(stem) < 3 or self.rng.random() < 0.4:
            stem += choice(_ONSETS) + choice(_VOWELS)
            stem += "" if ending.startswith(_VOWEL_LETTERS) else choice(_CODAS)
        if ending.startswith(_VOWEL_LETTERS) and stem.endswith(_VOWEL_LETTERS):
            stem += choice("lnrvdkt")
        return (stem + ending).capitalize()
