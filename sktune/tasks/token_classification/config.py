"""The section of token classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.tasks.config import HeadConfig, LabelledConfig


class TokenClassificationConfig(LabelledConfig, HeadConfig):
    """A tag for each word, scored by the entities that the tags spell."""

    name: Literal["token_classification"] = "token_classification"

    known_as: ClassVar[Mapping[str, str]] = {"ner": "", "pos": "", "tagging": ""}
    labelled_piece: Literal["first", "last"] = Field(
        "first",
        description="Which piece of a word carries its tag; a decoder has read the whole word at its last.",
    )

    columns: ClassVar[frozenset[str]] = frozenset({"words_column", "tags_column"})
    reads_words: ClassVar[bool] = True
    assumed_labels: ClassVar[int] = 9  # CoNLL-2003's

    def metrics(self) -> tuple[str, ...]:
        return ("f1", "precision", "recall", "accuracy", "loss")
