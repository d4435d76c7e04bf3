"""Frozen linear layers with packed weights, of which nothing outlives its use."""

from sktune.backbone.quantized.eight_bit import FrozenLinear8bit
from sktune.backbone.quantized.four_bit import FrozenLinear4bit
from sktune.backbone.quantized.frozen_linear import FrozenLinear
from sktune.backbone.quantized.replace import replace_linears

__all__ = ["FrozenLinear", "FrozenLinear4bit", "FrozenLinear8bit", "replace_linears"]
