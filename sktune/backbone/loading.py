"""Loading the backbone and its tokenizer as the recipe says."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from sktune.backbone.architecture import slides_a_window
from sktune.backbone.frozen import Backbone
from sktune.backbone.gguf import load_gguf_tokenizer
from sktune.backbone.lower_blocks import leave_out
from sktune.backbone.model_files import find_gguf
from sktune.backbone.placement import OneProcess, Placement
from sktune.backbone.skeleton import build_skeleton, model_class, read_config
from sktune.backbone.streaming import stream_weights
from sktune.embedded import model_location
from sktune.errors import UserError
from sktune.library_internals import supports
from sktune.sections import ModelSection, QuantizationSection

logger = logging.getLogger(__name__)


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end-of-sequence token where it has none of its own).

    Raises:
        UserError: where there is none, or it cannot tell which characters a token covers.
    """
    name = model.tokenizer or model.name_or_path
    field = "model.tokenizer" if model.tokenizer else "model.name_or_path"
    tokenizer = _read_tokenizer(model, name, field)
    if not tokenizer.is_fast:
        raise UserError(
            f"{field}: {name!r} has only a slow tokenizer, which cannot align words and tokens; "
            "convert it (transformers.convert_slow_tokenizer) and save its tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _read_tokenizer(model: ModelSection, name: str, field: str) -> PreTrainedTokenizerBase:
    folder = Path(model_location(name))
    has_file = (folder / "tokenizer.json").is_file()
    if not (model.tokenizer and has_file):
        gguf = find_gguf(name, None if model.tokenizer else model.gguf_file, model.revision, field=field)
        if gguf is not None:
            return load_gguf_tokenizer(gguf, field)
    try:
        if (folder / "tokenizer.model").is_file() and not has_file:
            # AutoTokenizer would read it, but lose the mark of the first word (transformers 5.23).
            return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
        return AutoTokenizer.from_pretrained(
            str(folder), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{field}: no tokenizer could be loaded from {name!r}: {first_line}") from error


def choose_attention(
    requested: str, dtype: str, device: torch.device, model_obstacle: str | None = None
) -> tuple[str, str]:
    """The attention kernel and the reason for it.

    `model_obstacle` says why the model itself cannot use flash-attention, where it cannot.

    Raises:
        UserError: where flash-attention is requested and cannot run.
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
        raise UserError(
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
    placement: Placement | None = None,
    left_out: int = 0,
) -> Backbone:
    """Loads the frozen backbone, tensor by tensor; collective where the placement is shared by several ranks.

    Args:
        model: which weights, dtype, attention.
        quantization: bits and their options; None keeps `model.dtype`.
        language_model: with the language-model head: causal, or an encoder's masked one.
        gradient_checkpointing: recompute blocks in backward.
        visible_prefix: every token must see a prefix (`MethodConfig.visible_prefix`), which flash-attention cannot
            promise to a model that slides a window.
        placement: where the weights go; None: whole, to the CPU.
        left_out: so many of the lower blocks, and the token embeddings, get no weights (`lower_blocks.leave_out`).

    Raises:
        UserError: naming the recipe field, for whatever the user can correct.
    """
    placement = placement or OneProcess()
    config = read_config(model)
    attention, reason = attention_for(model, config, placement.device, language_model, visible_prefix)
    logger.info("attention: %s (%s)", attention, reason)
    network = build_skeleton(model, quantization, config, language_model=language_model, attn_implementation=attention)
    backbone = Backbone(
        network,
        attn_implementation=attention,
        gradient_checkpointing=gradient_checkpointing,
        visible_prefix=visible_prefix,
    )
    if left_out:
        leave_out(backbone, left_out)
    stream_weights(network, model, placement)
    return backbone


def attention_for(
    model: ModelSection, config: PretrainedConfig, device: torch.device, language_model: bool, visible_prefix: bool
) -> tuple[str, str]:
    """The attention kernel of a model on a device, and the reason for it.

    Raises:
        UserError: where the recipe asks for one that cannot run.
    """
    architecture = model_class(model, config, language_model)
    obstacle = None
    if not supports(architecture, "flash_attention_2"):
        obstacle = f"{config.model_type} has no support for it"
    elif visible_prefix and slides_a_window(config):
        obstacle = f"the sliding window of {config.model_type} would hide the prefix from it"
    attention, reason = choose_attention(model.attn_implementation, model.dtype, device, obstacle)
    if attention == "sdpa" and not supports(architecture, "sdpa"):
        return "eager", f"{config.model_type} has no SDPA attention"
    return attention, reason
