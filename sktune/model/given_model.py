"""A model that a caller loaded, in the words of a recipe: which weights, in which arithmetic, packed how."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sktune.sections import ModelSection, QuantizationSection

DTYPES = {getattr(torch, name): name for name in ("float32", "bfloat16", "float16")}


class Source(NamedTuple):
    """Two sections of a recipe."""

    model: ModelSection
    quantization: QuantizationSection


def source_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Source | None:
    """Which model it is, and how it is packed; None where it cannot be loaded again by what it says of itself."""
    section = model_section(model, tokenizer)
    return None if section is None else Source(section, quantization_section(model))


def model_section(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ModelSection | None:
    """The section `model`; None where the model has no name, or a dtype that a recipe cannot ask for.

    Code of the model's repository is never named as trusted.
    """
    name = model.config.name_or_path
    if not name or model.dtype not in DTYPES:
        return None
    fields: dict[str, Any] = {"name_or_path": _place(name), "dtype": DTYPES[model.dtype]}
    if tokenizer.name_or_path and tokenizer.name_or_path != name:
        fields["tokenizer"] = _place(tokenizer.name_or_path)
    revision = getattr(model.config, "_commit_hash", None)
    if revision and not Path(name).exists():
        fields["revision"] = revision
    return ModelSection(**fields)


def _place(name: str) -> str:
    """A folder wherever the reader stands; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def quantization_section(model: PreTrainedModel) -> QuantizationSection:
    """The section `quantization` of bitsandbytes' configuration; without bits for any other, and for none."""
    given: Any = getattr(model.config, "quantization_config", None)
    said: dict[str, Any] = given if isinstance(given, dict) else given.to_dict() if given is not None else {}
    if said.get("load_in_8bit"):
        fields: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": said.get("llm_int8_threshold", 6.0)}
    elif said.get("load_in_4bit"):
        keys = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
        fields = {"load_in_4bit": True, **{key: said[key] for key in keys if said.get(key) is not None}}
    else:
        return QuantizationSection()
    if skipped := said.get("llm_int8_skip_modules"):
        fields["skip_modules"] = tuple(skipped)
    return QuantizationSection(**fields)
