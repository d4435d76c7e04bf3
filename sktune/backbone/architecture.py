"""What sktune has to know of an architecture, and which ones it refuses: the only place with families' names."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from sktune.errors import UserError

# Families whose attention bypasses the attention interface but reads a cache exactly (tested per family).
CACHE_FAMILIES = frozenset({"bloom", "falcon"})
# Position comes from the attention mask alone (ALiBi), so there is nothing to shift.
ALIBI_FAMILIES = frozenset({"bloom"})
# Positions are numbered in a way nothing in the model tells.
MISPLACING_FAMILIES = frozenset({"nystromformer"})


def check(base: PreTrainedModel) -> bool:
    """Refuses what cannot be tuned by a text in front; returns whether the model takes position ids.

    Raises:
        UserError: naming the family and the reason.
    """
    family = base.config.model_type
    if getattr(base.config, "is_encoder_decoder", False):
        raise UserError(f"{family} is an encoder-decoder; sktune tunes decoders and encoders")
    if base.config.get_text_config() is not base.config:
        raise UserError(
            f"{family} is made of several models (it reads more than text); give its text model, "
            "for example `model.model.language_model`"
        )
    for attribute in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(of_all_layers(base.config, attribute), int):
            raise UserError(f"{family} does not say its {attribute} in the usual place; choose another model")
    try:
        embeddings: Any = base.get_input_embeddings()
    except NotImplementedError:  # transformers does not find it
        embeddings = None
    if not (hasattr(embeddings, "num_embeddings") and hasattr(embeddings, "embedding_dim")):
        raise UserError(f"{family} embeds tokens by a layer of its own kind; choose another model")
    if family in MISPLACING_FAMILIES:
        raise UserError(f"{family} numbers its positions in a way of its own; choose another model")
    takes_position_ids = "position_ids" in inspect.signature(type(base).forward).parameters
    if not takes_position_ids and family not in ALIBI_FAMILIES:
        raise UserError(
            f"{family} gives no control over token positions (no `position_ids` argument), "
            "so a text in front of the input would be misplaced; choose another model"
        )
    return takes_position_ids


def of_all_layers(config: Any, attribute: str) -> Any:
    """A number of the configuration; None where there is none, or one for each layer."""
    try:
        return getattr(config, attribute, None)
    except RuntimeError:  # what transformers raises where layers differ
        return None


def is_encoder(config: Any) -> bool:
    """True where every token reads every other (BERT, RoBERTa)."""
    return not getattr(config, "is_decoder", False) and type(config) in MODEL_FOR_MASKED_LM_MAPPING


def place_of_blocks(base: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the list of transformer blocks, and the list's name in it."""
    depth = base.config.num_hidden_layers
    for parent in base.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return parent, name
    family = base.config.model_type
    raise UserError(f"{family}: no list of {depth} blocks found in the model; choose another model")


# The linear layers that a block's attention and its feed-forward end with.
SUBLAYER_OUTPUTS = (
    ("self_attn.o_proj", "mlp.down_proj"),  # LLaMA, Mistral, Qwen2, Gemma
    ("self_attn.dense", "mlp.fc2"),  # Phi
    ("self_attn.out_proj", "fc2"),  # OPT
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
    ("self_attention.dense", "mlp.dense_4h_to_h"),  # Falcon, Bloom
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa
)


def sublayer_outputs(block: nn.Module, family: str) -> tuple[nn.Module, nn.Module]:
    """The layers that a block's attention and feed-forward end with.

    Raises:
        UserError: where none of the known names are there.
    """
    modules = dict(block.named_modules())
    for attention, feedforward in SUBLAYER_OUTPUTS:
        if attention in modules and feedforward in modules:
            return modules[attention], modules[feedforward]
    raise UserError(
        f"method.name: a method behind attention and feed-forward is not available for {family}: where those end is "
        f"not known by name; choose a method that does not need that (`sktune list methods`)"
    )


def key_value_width(config: Any) -> int:
    """Features of one token's keys (and of its values, unless they are fewer) in one layer: kv_heads * head_dim.

    Raises:
        UserError: where layers differ in them.
    """
    try:
        return _key_value_width(config)
    except RuntimeError as error:  # what transformers raises where layers differ
        raise UserError(
            f"method.name: no prefix is available for {config.model_type}: its layers have keys and values of "
            "different widths; choose a method in front of the input (`sktune list methods`)"
        ) from error


def _key_value_width(config: Any) -> int:
    if getattr(config, "kv_lora_rank", None) and getattr(config, "qk_nope_head_dim", None):
        # Multi-head latent attention: every head's keys and values are made of the latent ones before it attends.
        widths = (config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim)
        return int(config.num_attention_heads) * max(widths)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "falcon":  # its cache holds every head in the newer layout, one in multi-query
        multi_query = config.multi_query and not config.new_decoder_architecture
        return int(head_dim) * (1 if multi_query else int(config.num_attention_heads))
    return int(head_dim) * int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def first_position(base: PreTrainedModel) -> int:
    """Position id of a sequence's first token."""
    # RoBERTa and its kin number real tokens from padding_idx + 1.
    positions = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def max_positions(base: PreTrainedModel) -> int | None:
    """Most tokens the model can tell apart by position; None where there is no such limit."""
    limit = getattr(base.config, "max_position_embeddings", None)
    if limit is None or base.config.model_type in ALIBI_FAMILIES:
        return None
    return int(limit) - first_position(base)


def rotary_border(config: Any) -> int | None:
    """The positions up to which rotary frequencies do not depend on a sequence's length; None: they never do."""
    given = getattr(config, "rope_parameters", None) or {}
    borders = []
    for of in [given, *(value for value in given.values() if isinstance(value, dict))]:
        if of.get("rope_type") in ("dynamic", "longrope"):
            original = of.get("original_max_position_embeddings")
            borders.append(int(original or config.max_position_embeddings))
    return min(borders, default=None)


def slides_a_window(config: Any) -> bool:
    """Whether a token of a long input does not see the first ones, in some of the layers."""
    return bool(of_all_layers(config, "sliding_window")) and bool(getattr(config, "use_sliding_window", True))
