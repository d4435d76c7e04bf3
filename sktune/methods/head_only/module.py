"""The baseline: a head on the features of the frozen model, which reads the input alone."""

from __future__ import annotations

from sktune.methods.method import Method


class HeadOnly(Method):
    """Nothing in front of the input, nothing to train besides the head."""
