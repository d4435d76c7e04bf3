"""A tag for each word, scored by the entities that the tags spell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sktune.backbone import Backbone
from sktune.data import Coder, EncodedSplit, Example, Reading, Row
from sktune.data.collate import Side, padded
from sktune.data.examples import ABSENT
from sktune.data.labels import label_counts, two_or_more
from sktune.data.table import Table
from sktune.data.tags import OUTSIDE, iob2_labels
from sktune.sections import DataSection
from sktune.tasks.heads import Head, TokenClassificationHead
from sktune.tasks.metrics import entity_metrics, tag_metrics
from sktune.tasks.task import Answers, Constant, Labels, Outputs, Scores, Task
from sktune.tasks.token_classification.config import TokenClassificationConfig
from sktune.tasks.token_classification.encode import encode_words
from sktune.tasks.token_classification.reading import read_tagged_words


class TokenClassification(Task):
    """A head classifies every token; the one piece of a word that is labelled answers for it."""

    config: TokenClassificationConfig

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        return read_tagged_words(table, data, self.config.labels, split, entities=self.reads_entities)

    def infer_labels(self, train: Reading) -> tuple[str, ...]:
        """Of entities O first, then B-X and I-X of each type; plain tags in sorted order."""
        if not self.reads_entities:
            return super().infer_labels(train)
        return two_or_more(iob2_labels(label_counts(train.examples)))

    def encode(
        self, examples: Sequence[Example], coder: Coder, labels: Labels, split: str, *, scoring: bool = False
    ) -> EncodedSplit:
        return encode_words(examples, coder, labels or (), self.config.labelled_piece, split)

    def labels_of(self, rows: Sequence[Row | None], width: int, side: Side) -> torch.Tensor:
        """A class id per token, [B, L] int64."""
        return padded([[] if row is None else row.labels for row in rows], ABSENT, width, side)  # type: ignore[misc]

    def sample(self, length: int, labels: int) -> Row:
        return Row(0, [0] * length, None, [0] * length, "")

    def head(self, backbone: Backbone, labels: int) -> Head:
        return TokenClassificationHead(backbone.hidden_size, labels, self.config.head_dropout)

    def answers(self, output: Outputs, rows: Sequence[Row | None], starts: Sequence[int], labels: Labels) -> Answers:
        """The tags of each row's words; a word without a piece of its own is answered "O", in the plain scheme None."""
        unread = OUTSIDE if self.reads_entities else None
        assert output.logits is not None and labels is not None
        best = output.logits.detach().float().cpu().argmax(-1)
        return {
            row.index: [labels[int(best[i, starts[i] + piece])] if piece >= 0 else unread for piece in row.word_pieces]
            for i, row in enumerate(rows)
            if row is not None
        }

    def score(self, rows: Sequence[Row], answers: Mapping[int, Any], loss: float, labels: Labels) -> Scores:
        rows = [row for row in rows if row.index in answers]
        references = [list(map(str, row.reference)) for row in rows]  # type: ignore[arg-type]
        tags = [answers[row.index] for row in rows]
        overall, per_type = (entity_metrics if self.reads_entities else tag_metrics)(references, tags)
        records = [
            {"row": row.index, "reference": reference, "prediction": predicted}
            for row, reference, predicted in zip(rows, references, tags, strict=True)
        ]
        return Scores({**overall, "loss": loss}, records, per_type=per_type)

    def constant(self, train: Sequence[Example], labels: Labels) -> Constant | None:
        if self.reads_entities:
            return f"all {OUTSIDE}", _without_entities
        tag = label_counts(train).most_common(1)[0][0]
        return f"all {tag}", lambda examples: tag_metrics(_tags_of(examples), [[tag] * len(e.words) for e in examples])[
            0
        ]

    def example(self, text: str, text_pair: str | None) -> Example:
        words = tuple(text.split())
        return Example(0, text, text_pair, words, (OUTSIDE,) * len(words))

    def shown(self, example: Example, rows: Sequence[Row], answers: Answers, labels: Labels) -> dict[str, Any]:
        """A word that was not read (cut off, or without a token) has no tag."""
        read = zip(answers[rows[0].index], rows[0].word_pieces, strict=True)
        tags = [tag if piece >= 0 else None for tag, piece in read]
        shown = {"words": list(example.words), "tags": tags}
        return (
            {**shown, "entities": entities(example.words, tags, example.text or " ".join(example.words))}
            if self.reads_entities
            else shown
        )

    def line(self, shown: Mapping[str, Any]) -> str:
        if not self.reads_entities:
            return " ".join(f"{word}/{tag or '_'}" for word, tag in zip(shown["words"], shown["tags"], strict=True))
        return ", ".join(f"{found['text']} [{found['type']}]" for found in shown["entities"]) or "no entities"


def _without_entities(examples: Sequence[Example]) -> dict[str, float]:
    references = _tags_of(examples)
    return entity_metrics(references, [[OUTSIDE] * len(tags) for tags in references])[0]


def _tags_of(examples: Sequence[Example]) -> list[list[str]]:
    return [[str(tag) for tag in example.reference] for example in examples]  # type: ignore[union-attr]


def entities(words: Sequence[str], tags: Sequence[str | None], text: str) -> list[dict[str, Any]]:
    """The entities that IOB2 tags spell out; a word without a tag is in none.

    Args:
        words: of the text, in its order.
        tags: of the words.
        text: that the words are of, with whatever stands between them.

    Returns:
        Of each its `text`, as it stands there, its `type`, and where it starts and ends, in characters from the text's
        beginning: `text[start:end]`.
    """
    found: list[dict[str, Any]] = []
    open_type: str | None = None
    place = 0
    for word, tag in zip(words, tags, strict=True):
        start = text.index(word, place)
        place = start + len(word)
        mark, _, kind = (tag or OUTSIDE).partition("-")
        if mark == "I" and kind == open_type:
            found[-1] |= {"text": text[found[-1]["start"] : place], "end": place}
        elif mark in ("B", "I"):
            found.append({"text": word, "type": kind, "start": start, "end": place})
        open_type = kind if mark in ("B", "I") else None
    return found
