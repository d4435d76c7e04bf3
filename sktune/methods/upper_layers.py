"""Methods that take part in the upper blocks of a model only; what lies below is the frozen model as it is."""

from __future__ import annotations

import re
from fractions import Fraction

from pydantic import Field, field_validator

from sktune.errors import UserError
from sktune.methods.config import MethodConfig

ANY_DEPTH = 10**6


def number_of(layers: int | str | None, depth: int) -> int:
    """How many of a model's `depth` blocks take part.

    Raises:
        UserError: for more than there are.
    """
    if layers is None:
        return depth
    if isinstance(layers, str):
        return max(1, round(Fraction(layers) * depth))
    if layers > depth:
        raise UserError(f"method.layers: {layers} is more than the model's {depth}; allowed: 1 to {depth}")
    return layers


class UpperLayersConfig(MethodConfig):
    """The field `layers`: of which blocks, counted from the top, the method is a part.

    Training then keeps no activations of the blocks below, and its backward pass ends above them (docs/depth.md).
    """

    layers: int | str | None = Field(
        None, description="How many of the upper blocks take part, or a share of them such as 1/2; null: all."
    )

    @field_validator("layers")
    @classmethod
    def _number_or_share(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value) if isinstance(value, str) else None
        if value is None or (share and Fraction(value) <= 1) or (isinstance(value, int) and value >= 1):
            return value
        raise UserError("must be a number of blocks, at least 1, or a share of them such as 1/2")

    def frozen_blocks(self, depth: int) -> int:
        return depth - number_of(self.layers, depth)

    @property
    def depth_needed(self) -> int:
        # A share of a few blocks, rounded, is no measure of the same share of many.
        return ANY_DEPTH if isinstance(self.layers, str) else self.layers or 0
