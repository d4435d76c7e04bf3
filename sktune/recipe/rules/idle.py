"""Options that were given but would do nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sktune.recipe.errors import Problem
from sktune.recipe.section import Section


def idle(name: str, section: Section, keys: Sequence[str], why: str, otherwise: str) -> Iterator[Problem]:
    """One problem for each of `keys` that the user gave explicitly, since `why` leaves it without effect."""
    for key in keys:
        if key in section.model_fields_set:
            yield Problem(f"{name}.{key}", f"would do nothing: {why}", cure=f"leave it out, or {otherwise}")
