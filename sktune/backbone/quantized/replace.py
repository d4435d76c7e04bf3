"""Which linear layers of a model are quantized, and the frozen layers that take their places."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from sktune.backbone.quantized.eight_bit import FrozenLinear8bit
from sktune.backbone.quantized.four_bit import FrozenLinear4bit
from sktune.backbone.quantized.frozen_linear import FrozenLinear
from sktune.recipe.schema import QuantizationSection


def replace_linears(network: PreTrainedModel, quantization: QuantizationSection, dtype: torch.dtype) -> None:
    """Puts an empty frozen layer (on the meta device) in the place of each linear layer that is to be quantized.

    Quantized is every `nn.Linear` and `Conv1D`, except the language model's head (its errors would be errors of the
    answer itself) and the modules that `skip_modules` names, by the end of their name or a pattern for its beginning.

    Args:
        network: parameters on the meta device.
        quantization: bits and their options.
        dtype: the model's.

    Raises:
        ValueError: where nothing would be quantized, or a name in `skip_modules` is not in the model.
    """
    head = network.get_output_embeddings()
    linears = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    for pattern in quantization.skip_modules:
        if all(should_convert_module(name, [pattern]) for name in linears):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise ValueError(
                f"quantization.skip_modules: no linear layer of {network.config.model_type} is called {pattern!r}; "
                f"there are {', '.join(kinds)}"
            )
    kept = list(quantization.skip_modules)
    chosen = {name: module for name, module in linears.items() if should_convert_module(name, kept)}
    if not chosen:
        raise ValueError(
            f"quantization: no linear layer of {network.config.model_type} is left to quantize; "
            "shorten quantization.skip_modules, or set load_in_4bit and load_in_8bit to false"
        )
    for name, module in chosen.items():
        network.set_submodule(name, _frozen_in_place_of(module, quantization, dtype))


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
