"""Loading the backbone and its tokenizer as the recipe says: safetensors only, quantized by bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sktune.backbone.frozen import Backbone
from sktune.embedded import is_embedded, resolve
from sktune.recipe.schema import ModelSection, QuantizationSection

logger = logging.getLogger(__name__)


def model_location(name: str) -> str:
    """A folder for `embedded:` names; hub ids and folders as they are."""
    return str(resolve(name)) if is_embedded(name) else name


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end-of-sequence token where it has none of its own).

    Raises:
        ValueError: where there is none, or it cannot tell which characters a token covers.
    """
    name = model.tokenizer or model.name_or_path
    field = "model.tokenizer" if model.tokenizer else "model.name_or_path"
    folder = Path(model_location(name))
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        # AutoTokenizer would read it, but lose the mark of the first word (transformers 5.23).
        raise ValueError(
            f"{field}: {name!r} has a tokenizer.model and no tokenizer.json; write it once with "
            f"`transformers.LlamaTokenizer.from_pretrained({name!r}, add_bos_token=True).save_pretrained({name!r})`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_location(name), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        raise ValueError(f"{field}: no tokenizer could be loaded from {name!r}: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{field}: {name!r} has only a slow tokenizer, which cannot align words and tokens; "
            "convert it (transformers.convert_slow_tokenizer) and save its tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def choose_attention(
    requested: str, dtype: str, device: torch.device, model_obstacle: str | None = None
) -> tuple[str, str]:
    """The attention kernel and the reason for it.

    `model_obstacle` says why the model itself cannot use flash-attention, where it cannot.

    Raises:
        ValueError: where flash-attention is requested and cannot run.
    """
    obstacles = []
    if device.type != "cuda":
        obstacles.append("there is no CUDA GPU")
    elif torch.cuda.get_device_capability(device)[0] < 8:
        obstacles.append("the GPU is older than Ampere")
    if importlib.util.find_spec("flash_attn") is None:
        obstacles.append("flash-attn is not installed (pip install 'sktune[flash]')")
    if dtype == "float32":
        obstacles.append("it needs model.dtype bfloat16 or float16")
    if model_obstacle is not None:
        obstacles.append(model_obstacle)
    if requested == "auto":
        if obstacles:
            return "sdpa", "flash-attention 2 not used: " + "; ".join(obstacles)
        return "flash_attention_2", "installed and supported by GPU, dtype and architecture"
    if requested == "flash_attention_2" and obstacles:
        raise ValueError(
            "model.attn_implementation: flash_attention_2 cannot run: " + "; ".join(obstacles) + "; use auto or sdpa"
        )
    return requested, "as the recipe says"


def load_backbone(
    model: ModelSection,
    quantization: QuantizationSection | None = None,
    *,
    language_model: bool = False,
    gradient_checkpointing: bool = False,
    visible_prefix: bool = False,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Loads and freezes the backbone.

    Args:
        model: which weights, dtype, attention.
        quantization: bitsandbytes settings; None keeps `model.dtype`.
        language_model: with the language-model head (causal_lm task).
        gradient_checkpointing: recompute blocks in backward.
        visible_prefix: every token must see a prefix (SK-Prefix), which flash-attention cannot promise to a
            model that slides a window.
        device: where a quantized model is put; an unquantized one stays on the CPU, so that ZeRO-3 can
            take its share tensor by tensor (move it yourself otherwise).

    Raises:
        ValueError: naming the recipe field, for whatever the user can correct.
    """
    device = torch.device(device)
    location = model_location(model.name_or_path)
    shared: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **shared)
        if getattr(config, "is_encoder_decoder", False):
            raise TypeError(f"{config.model_type} is an encoder-decoder")
        auto_class = AutoModelForCausalLM if language_model else AutoModel
        architecture: Any = auto_class._model_mapping[type(config)]
        architecture = architecture[0] if isinstance(architecture, tuple) else architecture
    except Exception as error:
        raise ValueError(_not_loadable(model.name_or_path, location, error)) from error
    obstacle = None
    if not getattr(architecture, "_supports_flash_attn", False):
        obstacle = f"{config.model_type} has no support for it"
    elif visible_prefix and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        obstacle = f"the sliding window of {config.model_type} would hide the prefix from it"
    attention, reason = choose_attention(model.attn_implementation, model.dtype, device, obstacle)
    if attention == "sdpa" and not architecture._supports_sdpa:
        attention, reason = "eager", f"{config.model_type} has no SDPA attention"
    logger.info("attention: %s (%s)", attention, reason)
    arguments: dict[str, Any] = {
        **shared,
        "config": config,
        "dtype": getattr(torch, model.dtype),
        "attn_implementation": attention,
        "use_safetensors": True,
    }
    if quantization is not None and quantization.bits is not None:
        arguments["quantization_config"] = bitsandbytes_config(model, quantization)
        if device.type == "cuda":
            arguments["device_map"] = {"": device.index or 0}
    if not language_model and config.model_type in ("bert", "roberta", "xlm-roberta", "electra", "camembert"):
        arguments["add_pooling_layer"] = False  # its weights would be random and are never used
    try:
        network, report = auto_class.from_pretrained(location, output_loading_info=True, **arguments)  # type: ignore[misc]
    except Exception as error:
        raise ValueError(_not_loadable(model.name_or_path, location, error)) from error
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise ValueError(
            f"model.name_or_path: {model.name_or_path!r} lacks {len(missing)} weights of {config.model_type} "
            f"({', '.join(missing[:3])} ...), which would be random; give a folder with the whole model"
        )
    _keep_weights_in_place(network)
    return Backbone(network, attn_implementation=attention, gradient_checkpointing=gradient_checkpointing)


def bitsandbytes_config(model: ModelSection, quantization: QuantizationSection) -> BitsAndBytesConfig:
    """The recipe's quantization in transformers' own form; packed 4-bit weights are stored as uint8."""
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.bnb_4bit_compute_dtype or model.dtype),
        llm_int8_threshold=quantization.llm_int8_threshold,
        # A list replaces transformers' own, which keeps the language-model head out (GPT-NeoX: embed_out).
        llm_int8_skip_modules=[*quantization.skip_modules, "lm_head", "embed_out"]
        if quantization.skip_modules
        else None,
    )


def _keep_weights_in_place(network: PreTrainedModel) -> None:
    # On CPUs with AVX512-BF16 a stock Linear4bit repacks its weight during one gradient-free pass, and every
    # later gradient through it is silently wrong (design fact 12).
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a plain flag, not a submodule


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _not_loadable(name: str, location: str, error: Exception) -> str:
    folder = Path(location)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        return (
            f"model.name_or_path: {name!r} holds only .bin weights, which are pickle and are never loaded; convert "
            "them once with `save_pretrained` of transformers in an environment you trust"
        )
    return (
        f"model.name_or_path: {name!r} cannot be loaded: {_first_line(error)}; give a hub id you have access to "
        "(HF_TOKEN for gated ones) or a local folder with config.json and *.safetensors"
    )
