"""The model without its weights: the right modules and shapes, every parameter on the meta device.

The loader fills it tensor by tensor, and the plan counts its bytes.
"""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights

from sktune.backbone import architecture
from sktune.backbone.gguf import read_gguf_config
from sktune.backbone.model_files import find_gguf, not_loadable
from sktune.backbone.quantized import replace_linears
from sktune.embedded import model_location
from sktune.errors import UserError
from sktune.library_internals import class_for, kept_in_fp32
from sktune.sections import ModelSection, QuantizationSection

logger = logging.getLogger(__name__)


def read_config(model: ModelSection) -> PretrainedConfig:
    """The architecture of the model that the recipe names.

    Raises:
        UserError: where there is none, or sktune cannot tune such a model, or its weights are already quantized.
    """
    gguf = find_gguf(model.name_or_path, model.gguf_file, model.revision)
    if gguf is not None:
        return read_gguf_config(gguf)
    location = model_location(model.name_or_path)
    try:
        config = AutoConfig.from_pretrained(
            location, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        if getattr(config, "is_encoder_decoder", False):
            raise TypeError(f"{config.model_type} is an encoder-decoder")
    except Exception as error:
        raise UserError(not_loadable(model.name_or_path, error)) from error
    method = _quantized_by(config, Path(location))
    if method is not None:
        raise UserError(
            f"model.name_or_path: the weights of {model.name_or_path!r} are already quantized ({method}); "
            "give the original 16- or 32-bit weights, and set quantization.load_in_4bit or load_in_8bit"
        )
    text: PretrainedConfig = config.get_text_config()
    if text is not config:
        logger.info("model.name_or_path: %s is made of several models; its text model is tuned", config.model_type)
    return text


_QUANTIZED_BY = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files that quantizing tools write beside a config.json that does not say so."""


def _quantized_by(config: PretrainedConfig, folder: Path) -> str | None:
    said = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if said is not None:
        method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
        return str(getattr(method, "value", method) or "unknown")
    return next((method for file, method in _QUANTIZED_BY.items() if (folder / file).is_file()), None)


def model_class(model: ModelSection, config: PretrainedConfig, language_model: bool) -> Any:
    """The class of a configuration, with or without the language model's head; of its own repository, where trusted.

    An encoder's language model is the masked one.

    Raises:
        UserError: where there is none.
    """
    auto_class = _auto_class(config, language_model)
    own: dict[str, str] = getattr(config, "auto_map", None) or {}
    if model.trust_remote_code and auto_class.__name__ in own:
        location = model_location(model.name_or_path)
        return get_class_from_dynamic_module(own[auto_class.__name__], location, revision=model.revision)
    try:
        return class_for(auto_class, config)
    except KeyError:
        raise UserError(
            f"model.name_or_path: transformers has no {auto_class.__name__.removeprefix('Auto')} for "
            f"{config.model_type}; choose another model" + (" or another task" if language_model else "")
        ) from None


def _auto_class(config: PretrainedConfig, language_model: bool) -> Any:
    if not language_model:
        return AutoModel
    return AutoModelForMaskedLM if architecture.is_encoder(config) else AutoModelForCausalLM


def build_skeleton(
    model: ModelSection,
    quantization: QuantizationSection | None,
    config: PretrainedConfig,
    *,
    language_model: bool,
    attn_implementation: str,
) -> PreTrainedModel:
    """The model with its linear layers already replaced by frozen ones; nothing of its weights is allocated.

    Args:
        model: dtype, and whether code of the model's repository may run.
        quantization: bits and options; None or no bits keeps `model.dtype`.
        config: from `read_config`; left as it is.
        language_model: with the language model's head.
        attn_implementation: `eager`, `sdpa` or `flash_attention_2`.

    Returns:
        Parameters on the meta device, in model.dtype or packed; buffers on the CPU and computed.

    Raises:
        UserError: for an architecture or a quantization that cannot be.
    """
    dtype: torch.dtype = getattr(torch, model.dtype)
    auto_class = _auto_class(config, language_model)
    arguments: dict[str, Any] = {"trust_remote_code": True} if model.trust_remote_code else {}
    if "add_pooling_layer" in inspect.signature(model_class(model, config, language_model).__init__).parameters:
        arguments["add_pooling_layer"] = False  # never used

    def build(dtype: torch.dtype, include_buffers: bool) -> PreTrainedModel:
        with no_init_weights(), init_empty_weights(include_buffers=include_buffers):
            network: PreTrainedModel = auto_class.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation=attn_implementation, **arguments
            )
        network.tie_weights()  # the context above parts tied parameters
        return network

    # Buffers are computed for real, most are not in the checkpoint (rotary frequencies, masks); and in 32 bits, to be
    # rounded to what they are in the model's dtype only then.
    network = build(torch.float32, include_buffers=False)
    if dtype != torch.float32:
        _cast(network, build(dtype, include_buffers=True))
    if quantization is not None and quantization.bits is not None:
        replace_linears(network, quantization, dtype)
    return network.eval()


def _cast(network: PreTrainedModel, like: PreTrainedModel) -> None:
    """Parameters and buffers to the dtypes they have in a model built in 16 bits, but for what stays in 32."""
    kept = kept_in_fp32(network, like.dtype)
    dtypes = {name: tensor.dtype for name, tensor in [*like.named_parameters(), *like.named_buffers()]}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not kept.intersection(name.split(".")):
            tensor.data = tensor.data.to(dtypes[name])
    network.config.dtype = like.config.dtype
