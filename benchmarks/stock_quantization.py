"""What transformers and bitsandbytes are asked for, so that they load what a recipe says."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig

from sktune.recipe import Recipe


def quantization_config(recipe: Recipe, skip: list[str] | None = None) -> BitsAndBytesConfig:
    """The recipe's section `quantization` in transformers' words.

    Args:
        recipe: bits and their options.
        skip: modules that stay as they are; None: those that transformers leaves out by itself.
    """
    quantization = recipe.quantization
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, recipe.model.dtype),
    )
