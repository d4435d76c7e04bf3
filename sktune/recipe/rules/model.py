"""Rules of the backbone: its arithmetic and its quantization."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.embedded import PREFIX
from sktune.errors import Problem
from sktune.recipe.rules.embedded_names import embedded_names_exist
from sktune.sections import ModelSection, QuantizationSection, idle

_OPTIONS_OF_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")


def one_bit_width(quantization: QuantizationSection) -> Iterator[Problem]:
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield Problem(
            "quantization.load_in_8bit",
            "load_in_4bit and load_in_8bit cannot both be true",
            "one of the two, or neither",
            "set one of them to false; 4 bits need half the memory, 8 bits stay closer to the original.",
        )


def options_of_4bit_need_4bit(quantization: QuantizationSection) -> Iterator[Problem]:
    if not quantization.load_in_4bit:
        yield from idle(
            "quantization",
            quantization,
            _OPTIONS_OF_4BIT,
            "load_in_4bit is false",
            "set quantization.load_in_4bit: true.",
        )


def options_of_8bit_need_8bit(quantization: QuantizationSection) -> Iterator[Problem]:
    if not quantization.load_in_8bit:
        yield from idle(
            "quantization",
            quantization,
            ("llm_int8_threshold",),
            "load_in_8bit is false",
            "set quantization.load_in_8bit: true.",
        )


def skip_modules_need_quantization(quantization: QuantizationSection) -> Iterator[Problem]:
    if quantization.bits is None:
        why, cure = "the model is not quantized", "set load_in_4bit or load_in_8bit."
        yield from idle("quantization", quantization, ("skip_modules",), why, cure)


def flash_attention_needs_16_bits(model: ModelSection) -> Iterator[Problem]:
    if model.attn_implementation == "flash_attention_2" and model.dtype == "float32":
        yield Problem(
            "model.attn_implementation",
            "flash_attention_2 has no float32 kernels",
            "with model.dtype float32: auto, eager, sdpa",
            "set model.dtype: bfloat16, or model.attn_implementation: sdpa.",
        )


def embedded_model_exists(model: ModelSection) -> Iterator[Problem]:
    yield from embedded_names_exist("model.name_or_path", model.name_or_path, "model")
    if model.tokenizer is not None:
        yield from embedded_names_exist("model.tokenizer", model.tokenizer, "model")


def embedded_models_have_no_revision(model: ModelSection) -> Iterator[Problem]:
    if model.name_or_path.startswith(PREFIX):
        why = "an embedded model is one fixed version"
        yield from idle("model", model, ("revision",), why, "name a hub id in model.name_or_path.")


def gguf_file_is_inside_a_folder(model: ModelSection) -> Iterator[Problem]:
    if model.name_or_path.endswith(".gguf") or model.name_or_path.startswith(PREFIX):
        why = f"{model.name_or_path} says already which file it is"
        yield from idle("model", model, ("gguf_file",), why, "name the folder in model.name_or_path.")
    elif model.gguf_file is not None and not model.gguf_file.endswith(".gguf"):
        yield Problem(
            "model.gguf_file",
            f"{model.gguf_file!r} is no GGUF file",
            "the name of a .gguf file inside the folder or hub repository",
            "leave it out for safetensors.",
        )


def gguf_has_neither_revision_nor_code(model: ModelSection) -> Iterator[Problem]:
    if model.tokenizer is None and (model.gguf_file is not None or model.name_or_path.endswith(".gguf")):
        why, cure = "a GGUF file holds no code", "name a folder or hub id of safetensors."
        yield from idle("model", model, ("trust_remote_code",), why, cure)
        if model.gguf_file is None:
            why, cure = "model.name_or_path is a file of yours", "name a hub id and model.gguf_file."
            yield from idle("model", model, ("revision",), why, cure)


RULES = (
    one_bit_width,
    options_of_4bit_need_4bit,
    options_of_8bit_need_8bit,
    skip_modules_need_quantization,
    flash_attention_needs_16_bits,
    embedded_model_exists,
    embedded_models_have_no_revision,
    gguf_file_is_inside_a_folder,
    gguf_has_neither_revision_nor_code,
)
