"""The rated sentences of Hutto & Gilbert (2014) as JSON lines: positive or negative, and the mean rating.

Of four kinds of text, each rated from -4 (most negative) to 4 by at least 15 people. Repetitions become one text with
the mean of their ratings. The split of a text depends on its words alone, so that everyone has the same splits and no
text is in two of them.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from sktune.embedded.unpacking import unpack

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
CITATION = (
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social "
    "Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14)."
)
SETTLED = 0.5
"""Below this distance from 0 the sign of a mean rating is not sure: it is 2.6 to 3.3 times the median standard error
of the means, and above the 95th percentile of it in every set. Such texts have a rating, but no label."""
SPLITS = ("train", "validation", "test")
_FILES = {
    "film_reviews": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "product_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
_README = "_README_.txt"
_UNPACKED_LIMIT = 10_000_000  # bytes


def write_all(folder: Path) -> None:
    """Replaces the original archive in `folder` by a folder of data for each kind of text, and the authors' notes.

    Each gets `train.jsonl`, `validation.jsonl` and `test.jsonl` with columns `text` and `label` (`negative` or
    `positive`), and the same in `ratings/`, where `label` is the mean rating.

    Raises:
        UserError: for an archive that holds something else.
    """
    inside = ARCHIVE.removesuffix(".tar.gz")
    members = {f"{inside}/{file}": file for file in (*_FILES.values(), _README)}
    unpack(folder / ARCHIVE, folder, members, _UNPACKED_LIMIT)
    (folder / ARCHIVE).unlink()
    for name, file in _FILES.items():
        ratings = rated((folder / file).read_text(encoding="utf-8").splitlines())
        labels = {
            text: "positive" if rating > 0 else "negative" for text, rating in ratings.items() if abs(rating) >= SETTLED
        }
        _write(folder / name, labels)
        _write(folder / name / "ratings", {text: round(rating, 3) for text, rating in ratings.items()})
        (folder / file).unlink()


def rated(lines: Iterable[str]) -> dict[str, float]:
    """Text -> mean rating, of lines of id, rating and text with tabs between.

    HTML entities are replaced and white space collapsed; lines without a letter or digit are left out. Of texts that
    differ in case only, the first in alphabetical order stands for all, with the mean of their ratings.
    """
    alike: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
    for line in lines:
        _, rating, text = line.split("\t", 2)
        text = " ".join(html.unescape(html.unescape(text)).split())  # some were escaped twice
        if re.search(r"\w", text):
            alike[text.casefold()].append((text, float(rating)))
    return {min(group)[0]: sum(sorted(rating for _, rating in group)) / len(group) for group in alike.values()}


def split_of(text: str) -> str:
    """`train` (80 percent of all texts), `validation` (10) or `test` (10).

    A function of the text's words in lower case: texts that differ in punctuation alone are in one split.
    """
    tenth = _digest(" ".join(re.findall(r"\w+", text.casefold()))) % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _write(folder: Path, values: dict[str, str] | dict[str, float]) -> None:
    """A file for each split, in an order that has nothing to do with the original one: the first n are a sample."""
    folder.mkdir()
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in sorted(values, key=lambda text: (_digest(text), text)):
        rows[split_of(text)].append(json.dumps({"text": text, "label": values[text]}, ensure_ascii=False) + "\n")
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
