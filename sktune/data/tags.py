"""Tagging schemes of named entities: everything that is read becomes IOB2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
_TAG = re.compile(r"O|[BIESLU]-.+")


def is_entity_tag(tag: str) -> bool:
    """Whether `tag` belongs to IOB1, IOB2, BIOES or BILOU."""
    return _TAG.fullmatch(tag) is not None


def to_iob2(sentences: Sequence[Sequence[str]]) -> tuple[list[tuple[str, ...]], str | None]:
    """Convert the tags of a whole file to IOB2.

    Entities are read as conlleval reads them: one begins at B, S or U, and at any I, E or L that does not
    continue an entity of its own type.

    Args:
        sentences: tags of IOB1, IOB2, BIOES or BILOU, checked by `is_entity_tag`.

    Returns:
        The tags of each sentence in IOB2, and one line on what was converted (None if nothing was).
    """
    converted: list[tuple[str, ...]] = []
    changed = 0
    for tags in sentences:
        converted.append(tuple(_sentence(tags)))
        changed += sum(old != new for old, new in zip(tags, converted[-1], strict=True))
    if not changed:
        return converted, None
    prefixes = {tag[0] for tags in sentences for tag in tags}
    if prefixes & set("ESLU"):
        scheme = "BILOU" if prefixes & set("LU") else "BIOES"
        return converted, f"{scheme} tags converted to IOB2 ({changed} tags)"
    if all(_b_only_between_neighbours(tags) for tags in sentences):
        return converted, f"IOB1 tags converted to IOB2 ({changed} tags)"
    return converted, f"{changed} I- tags that continue no entity of their type read as B-"


def _sentence(tags: Iterable[str]) -> Iterable[str]:
    running: str | None = None  # the type of the entity that the next I- may continue
    for tag in tags:
        prefix, _, entity = tag.partition("-")
        if prefix == OUTSIDE:
            yield OUTSIDE
        else:
            yield f"I-{entity}" if prefix in "IEL" and running == entity else f"B-{entity}"
        running = entity if prefix in "BI" else None


def _b_only_between_neighbours(tags: Sequence[str]) -> bool:
    """IOB1 uses B- only where an entity directly follows another of its type."""
    return all(not tag.startswith("B-") or (i > 0 and tags[i - 1][1:] == tag[1:]) for i, tag in enumerate(tags))


def iob2_labels(tags: Iterable[str]) -> tuple[str, ...]:
    """The label set for IOB2 tags: O first, then B-X and I-X of every type X in sorted order."""
    types = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
    return (OUTSIDE, *(f"{prefix}-{entity}" for entity in types for prefix in "BI"))
