"""The labelled files: `newswire/*.conll`, `sentiment/*.jsonl`, `entailment/*.jsonl`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from sktune.embedded import pairs, reviews
from sktune.embedded.names import SPLITS, Split
from sktune.embedded.news import Newsroom, Sentence

SIZES: dict[Split, int] = {"train": 800, "validation": 200, "test": 300}


def write_datasets(folder: Path, seed: int, sizes: dict[Split, int] = SIZES) -> None:
    """Write all labelled files below `folder`; every split draws from a stream of its own."""
    for split, size in sizes.items():
        rng = random.Random(seed * len(SPLITS) + SPLITS.index(split))
        newsroom = Newsroom(rng, split)
        _write(folder / "newswire" / f"{split}.conll", conll([newsroom.sentence() for _ in range(size)]))
        reviewed = [(rng.choice(reviews.LABELS)) for _ in range(size)]
        _write(
            folder / "sentiment" / f"{split}.jsonl",
            json_lines({"text": reviews.review(rng, split, label), "label": label} for label in reviewed),
        )
        _write(
            folder / "entailment" / f"{split}.jsonl",
            json_lines(_pair_row(rng, split, rng.choice(pairs.LABELS)) for _ in range(size)),
        )


def conll(sentences: Iterable[Sentence]) -> str:
    """CoNLL columns: word and IOB2 tag, a blank line after each sentence, one document mark at the head."""
    blocks = ["-DOCSTART- O"]
    blocks += ["\n".join(map(" ".join, zip(s.words, s.tags, strict=True))) for s in sentences]
    return "\n\n".join(blocks) + "\n"


def json_lines(rows: Iterable[dict[str, str]]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _pair_row(rng: random.Random, split: Split, label: str) -> dict[str, str]:
    premise, hypothesis = pairs.pair(rng, split, label)
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
