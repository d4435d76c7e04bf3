"""Which linear layers of a model are quantized, and the frozen layers that take their places."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from sktune.backbone.quantized.eight_bit import FrozenLinear8bit
from sktune.backbone.quantized.four_bit import FrozenLinear4bit
from sktune.backbone.quantized.frozen_linear import FrozenLinear
from sktune.errors import UserError
from sktune.sections import QuantizationSection


def replace_linears(network: PreTrainedModel, quantization: QuantizationSection, dtype: torch.dtype) -> None:
    """Puts an empty frozen layer (on the meta device) in the place of each linear layer that is to be quantized.

    Quantized is every `nn.Linear` and `Conv1D` that multiplies as these do, except the language model's head (all of
    an encoder's; its errors would be errors of the answer itself) and the modules that `skip_modules` names, by the
    end of their name or a pattern for its beginning.

    Args:
        network: parameters on the meta device.
        quantization: bits and their options.
        dtype: the model's.

    Raises:
        UserError: where nothing would be quantized, or an entry of `skip_modules` names nothing or is no pattern.
    """
    head = network.get_output_embeddings()
    linears = {name: module for name, module in network.named_modules() if module is head or _is_plain_linear(module)}
    skipped: set[str] = set()
    for pattern in quantization.skip_modules:
        named = [name for name in linears if _is_named(name, pattern, network)]
        if not named:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise UserError(
                f"quantization.skip_modules: no linear layer of {network.config.model_type} is called {pattern!r}; "
                f"there are {', '.join(kinds)}"
            )
        skipped.update(named)
    body = set(getattr(network, network.base_model_prefix, network).modules()) - {head}
    chosen = {name: module for name, module in linears.items() if name not in skipped and module in body}
    if not chosen:
        raise UserError(
            f"quantization: no linear layer of {network.config.model_type} is left to quantize; "
            "shorten quantization.skip_modules, or set load_in_4bit and load_in_8bit to false"
        )
    for name, module in chosen.items():
        network.set_submodule(name, _frozen_in_place_of(module, quantization, dtype))


def _is_plain_linear(module: nn.Module) -> bool:
    # A subclass with a forward of its own (a router, a grouped projection) does something else with its weight;
    # Falcon's does the same in other words.
    return isinstance(module, nn.Linear | Conv1D) and (
        type(module).forward in (nn.Linear.forward, Conv1D.forward) or isinstance(module, FalconLinear)
    )


def _is_named(name: str, pattern: str, network: PreTrainedModel) -> bool:
    # With and without the language model's head, a module has two names: model.layers.1 and layers.1.
    names = {name, name.removeprefix(f"{network.base_model_prefix}.")}
    try:
        return not all(should_convert_module(known, [pattern]) for known in names)
    except re.error as error:
        raise UserError(
            f"quantization.skip_modules: {pattern!r} is neither a name nor a regular expression ({error}); "
            "give the end of a layer's name, such as q_proj, or a pattern such as layers.(0|1)"
        ) from error


def _frozen_in_place_of(module: nn.Module, quantization: QuantizationSection, dtype: torch.dtype) -> FrozenLinear:
    transposed = isinstance(module, Conv1D)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    out_features, in_features = reversed(weight.shape) if transposed else weight.shape
    bias = module.bias is not None
    if quantization.load_in_8bit:
        threshold = quantization.llm_int8_threshold
        return FrozenLinear8bit(
            in_features, out_features, bias=bias, dtype=dtype, threshold=threshold, transposed=transposed
        )
    compute = quantization.bnb_4bit_compute_dtype
    return FrozenLinear4bit(
        in_features,
        out_features,
        bias=bias,
        dtype=dtype,
        quant_type=quantization.bnb_4bit_quant_type,
        double_quant=quantization.bnb_4bit_use_double_quant,
        compute_dtype=dtype if compute is None else getattr(torch, compute),
        transposed=transposed,
    )
