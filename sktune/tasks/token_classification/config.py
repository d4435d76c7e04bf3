"""The section of token classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sktune.tasks.config import HeadConfig, WeighedConfig


class TokenClassificationConfig(WeighedConfig, HeadConfig):
    """A tag for each word, scored by the entities that the tags spell, or tag by tag."""

    name: Literal["token_classification"] = "token_classification"
    scheme: Literal["iob2", "plain"] = Field(
        "iob2",
        description="What tags are: of entities (IOB1, IOB2, BIOES or BILOU, read as IOB2), or plain, each standing "
        "for itself, such as parts of speech.",
    )

    known_as: ClassVar[Mapping[str, str]] = {"ner": "", "pos": "", "tagging": ""}
    labelled_piece: Literal["first", "last"] = Field(
        "first",
        description="Which piece of a word carries its tag; a decoder has read the whole word at its last.",
    )

    columns: ClassVar[frozenset[str]] = frozenset({"words_column", "tags_column"})
    reads_words: ClassVar[bool] = True
    hub_task: ClassVar[str | None] = "token-classification"
    assumed_labels: ClassVar[int] = 9  # CoNLL-2003's
    shown_as: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]] = (
        (
            {"text": "Peter lives in New York"},
            {
                "words": ["Peter", "lives", "in", "New", "York"],
                "tags": ["B-PER", "O", "O", "B-LOC", "I-LOC"],
                "entities": [
                    {"text": "Peter", "type": "PER", "start": 0, "end": 5},
                    {"text": "New York", "type": "LOC", "start": 15, "end": 23},
                ],
            },
        ),
    )

    @property
    def reads_entities(self) -> bool:
        return self.scheme == "iob2"

    def metrics(self) -> tuple[str, ...]:
        if self.scheme == "plain":
            return ("accuracy", "macro_f1", "loss")
        return ("f1", "precision", "recall", "accuracy", "loss")
