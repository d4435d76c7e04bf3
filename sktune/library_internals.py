"""Every use of what torch, transformers and peft do not document, with the reason.

Seen with torch 2.13, transformers 5.23 and peft 0.21; to be looked at again with each new version of them. DeepSpeed's
are in `distributed/deepspeed_internals.py`, and what is left out when libraries are imported is in `imports.py`.
`tests/test_names.py` looks for others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch._guards import detect_fake_mode

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Kernel = Literal["eager", "sdpa", "flash_attention_2"]
READ_WITHOUT_ERROR = {"_raise_exceptions_for_missing_entries": False}
"""Arguments of transformers' `cached_file`: None for a file that is not there. Cause: which of two there is has to be
found out, and it raises one kind of exception for that and for a hub that does not answer."""

# -- torch ---------------------------------------------------------------------------------------------------------


def have_values(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether tensors hold numbers: none is on the meta device or a compiler's stand-in.

    Cause: `torch.compiler.is_compiling` is false while a compiler runs what it must not trace on such stand-ins.
    """
    found = list(parameters)
    return not any(tensor.is_meta for tensor in found) and detect_fake_mode(found) is None


def is_saved(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer is part of the state; `register_buffer(persistent=...)` has no getter."""
    return buffer not in module._non_persistent_buffers_set


# -- transformers: classes and their names -------------------------------------------------------------------------


def class_for(auto_class: Any, config: PretrainedConfig) -> Any:
    """The class an auto class would make of a configuration.

    Cause: `from_config` says it only by making one, and attention is chosen by the class.

    Raises:
        KeyError: where there is none.
    """
    found = auto_class._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def kept_in_fp32(network: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Names of modules that transformers leaves in 32 bits when it loads a model of this dtype."""
    kept = set(network._keep_in_fp32_modules_strict or ())
    return kept | set(network._keep_in_fp32_modules or ()) if dtype == torch.float16 else kept


def naming_rules(network: PreTrainedModel, expected: dict[str, Any]) -> Callable[[str], tuple[str, bool]]:
    """What turns the name of a checkpoint's tensor into the model's, and says whether its numbers are rearranged.

    Cause: `from_pretrained` applies these rules only while it loads whole files.

    Args:
        network: the model that is loaded.
        expected: by its names.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(network)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]

    def rename(stored: str) -> tuple[str, bool]:
        target, converter = rename_source_key(stored, renamings, converters, network.base_model_prefix, expected)
        if target not in expected:
            target, converter = rename_source_key(stored, [], [], network.base_model_prefix, expected)
        return target, converter is not None

    return rename


# -- transformers: attention ---------------------------------------------------------------------------------------


def attention_of(config: PretrainedConfig) -> str:
    """The attention that models of a configuration use at the moment; eager where nothing was said."""
    return config._attn_implementation or "eager"


def set_attention(config: PretrainedConfig, implementation: str) -> None:
    """Models of a configuration use another attention from now on.

    Cause: `set_attn_implementation` walks all modules and checks the machine, and this is done twice in every pass.
    """
    config._attn_implementation = implementation


def supports(architecture: Any, kernel: Kernel | Literal["interface"]) -> bool:
    """Whether an architecture can use an attention kernel, or one that is registered with the attention interface."""
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    return kernel == "eager" or bool(getattr(architecture, flags.get(kernel, "_supports_attention_backend"), False))


def attention_function(kernel: Kernel) -> Callable[..., Any]:
    """The function of a kernel as attention modules call it.

    Cause: each modelling file has an eager function of its own. That of flash-attention reads the kernel's name from
    the module's configuration, where the name is ours.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)

    def flash(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        view = SimpleNamespace(
            config=SimpleNamespace(_attn_implementation=kernel),
            is_causal=getattr(module, "is_causal", True),
            layer_idx=getattr(module, "layer_idx", None),
        )
        return ALL_ATTENTION_FUNCTIONS[kernel](view, *args, **kwargs)

    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return {"eager": eager, "sdpa": function, "flash_attention_2": flash}[kernel]


def mask_function(kernel: Kernel) -> Callable[..., Any]:
    """What makes a kernel's mask.

    Cause: a mask that only hides what comes later is left out for SDPA, which then aligns it with the first key and not
    the last (https://github.com/pytorch/pytorch/issues/108108): wrong as soon as keys outnumber queries.
    """
    from transformers import masking_utils

    if kernel == "eager":
        return masking_utils.eager_mask
    if kernel == "flash_attention_2":
        return masking_utils.flash_attention_mask
    return lambda *args, **kwargs: masking_utils.sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


# -- peft and bitsandbytes -----------------------------------------------------------------------------------------


DISABLED_LAYER = "_disable_adapters"
"""Attribute of peft's layers: true where they add nothing. Cause: `enable_adapters(False)`, which sets it, also ends
the training of the layer's parameters."""
ACTIVE_ADAPTER = "_active_adapter"
"""Attribute of peft's layers: names of the adapters that are read. Cause: `set_adapter`, which sets it, also chooses
whose parameters train."""


def never_repack(module: nn.Module) -> None:
    """Keeps a 4-bit layer of bitsandbytes as it is.

    Cause: on a CPU with AVX512-BF16 `Linear4bit` rearranges its weight in a pass without gradient, and every later
    gradient through it is wrong (0.50.2; related: https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2078).
    """
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.__dict__["support_avx512bf16_for_cpu"] = False
