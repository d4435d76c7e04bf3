"""Amounts of memory, read and written."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

SMALLEST = 2**16
"""A bare `24` is 24 bytes, and not what was meant."""


def parse_bytes(text: str) -> int:
    """Bytes of "24GiB", "24G", "80 GB" or a plain number.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", text, re.IGNORECASE)
    size = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0
    if size < SMALLEST:
        raise ValueError(
            f"--gpu-memory: {text!r} is no amount of memory that a GPU has; write it like 24GiB, 80GB or 16000000000"
        )
    return int(size)


def gibibytes(size: int) -> str:
    """For people: "3.56 GiB", or MiB below a tenth of one."""
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 / 10 else f"{size / 2**30:,.2f} GiB"
