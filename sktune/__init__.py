"""Semantic Knowledge Tuning of frozen, quantized, ZeRO-3-sharded language models (arXiv 2410.08598)."""

__version__ = "0.1.0"
