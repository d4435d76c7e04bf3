"""One label for each text."""

from __future__ import annotations

from sktune.tasks.classes import ClassTask


class SequenceClassification(ClassTask):
    """One label for each text."""
