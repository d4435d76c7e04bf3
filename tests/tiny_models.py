"""Tiny real models and tokenizers for the tests: random weights, one shape for all, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from sktune.backbone import Backbone
from sktune.methods.config import MethodConfig
from sktune.methods.method import build_method
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.methods.sk_prompt.config import SKPromptConfig
from sktune.model.tuned_model import TunedModel
from sktune.tasks import TASKS
from sktune.tasks.task import build_task

TEXT = "find the names of people and places"
OPENING, PAD, CLOSING, UNKNOWN = 0, 1, 2, 3  # RoBERTa's order: position 1 belongs to padding
_WORDS = [*TEXT.split(), *(f"w{i}" for i in range(90))]
VOCABULARY = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *_WORDS])}
FIRST_WORD = 4
MASK = "w89"
"""Stands for an encoder's mask token; no test reads it as a word."""
VOCABULARY_SIZE = 104
DEPTH, WIDTH, HEADS = 3, 64, 4
WINDOW = 6

_SPECIAL: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": OPENING, "eos_token_id": CLOSING}
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    **_SPECIAL,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "intermediate_size": 128, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[..., tf.PretrainedConfig]] = {
    "llama": lambda **more: tf.LlamaConfig(**{**_GROUPED, **more}),
    "mistral": lambda **more: tf.MistralConfig(**{**_GROUPED, "sliding_window": 4096, **more}),
    "mistral_window": lambda **more: tf.MistralConfig(**{**_GROUPED, "sliding_window": WINDOW, **more}),
    "qwen2": lambda **more: tf.Qwen2Config(**{**_GROUPED, **more}),
    "gpt_neox": lambda **more: tf.GPTNeoXConfig(**{**_SHAPE, "intermediate_size": 128, **more}),
    "falcon": lambda **more: tf.FalconConfig(**{**_SHAPE, **more}),
    "falcon_new": lambda **more: tf.FalconConfig(
        **{**_SHAPE, "new_decoder_architecture": True, "num_kv_heads": 2, **more}
    ),
    "falcon_alibi": lambda **more: tf.FalconConfig(
        **{**_SHAPE, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True, **more}
    ),
    "bloom": lambda **more: tf.BloomConfig(
        **{
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": WIDTH,
            "n_layer": DEPTH,
            "n_head": HEADS,
            **_SPECIAL,
            **more,
        }
    ),
    "phi": lambda **more: tf.PhiConfig(**{**_SHAPE, "intermediate_size": 128, **more}),
    "gpt2": lambda **more: tf.GPT2Config(
        **{
            "vocab_size": VOCABULARY_SIZE,
            "n_embd": WIDTH,
            "n_layer": DEPTH,
            "n_head": HEADS,
            **_SPECIAL,
            **more,
        }
    ),
    "opt": lambda **more: tf.OPTConfig(**{**_SHAPE, "ffn_dim": 128, "word_embed_proj_dim": WIDTH, **more}),
    "bert": lambda **more: tf.BertConfig(**{**_SHAPE, "intermediate_size": 128, **more}),
    "roberta": lambda **more: tf.RobertaConfig(**{**_SHAPE, "intermediate_size": 128, "type_vocab_size": 1, **more}),
}
ENCODERS = ("bert", "roberta")
DECODERS = tuple(name for name in CONFIGS if name not in ENCODERS)
WITHOUT_SDPA = ("bloom",)


def kernels(family: str) -> tuple[str, ...]:
    """Attention implementations that run on a CPU."""
    return ("eager",) if family in WITHOUT_SDPA else ("eager", "sdpa")


def tiny_network(
    family: str,
    attention: str = "eager",
    *,
    language_model: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> tf.PreTrainedModel:
    """The plain transformers model, the same weights for the same family at every call.

    Weights are larger than an initialisation's and biases are not zero: what a token attends to matters.
    """
    with_head: Any = tf.AutoModelForMaskedLM if family in ENCODERS else tf.AutoModelForCausalLM
    auto: Any = with_head if language_model else tf.AutoModel
    network = auto.from_config(CONFIGS[family](**config), attn_implementation=attention)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.08 if parameter.ndim > 1 else parameter + noise * 0.05)
    return network.to(dtype).eval()


def tiny_backbone(family: str, attention: str = "eager", *, checkpointing: bool = False, **network: Any) -> Backbone:
    return Backbone(
        tiny_network(family, attention, **network),
        attn_implementation=attention,
        gradient_checkpointing=checkpointing,
    )


def tiny_tokenizer(encoder: bool = False) -> tf.PreTrainedTokenizerFast:
    """One token per word; `<s> text` for decoders, `<s> text </s>` as CLS and SEP for encoders."""
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if encoder else "<s> $A"
    raw.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", OPENING), ("</s>", CLOSING)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    if encoder:
        names = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": MASK}
    return tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", **names)


def prompt_ids(family: str) -> torch.Tensor:
    """[1, P]: what the text is to a model of this family."""
    return torch.tensor([tiny_tokenizer(family in ENCODERS)(TEXT)["input_ids"]])


def section(name: str, **fields: Any) -> MethodConfig:
    """An SK method's recipe section, with the tests' prompt text."""
    return SKPrefixConfig(text=TEXT, **fields) if name == "sk_prefix" else SKPromptConfig(text=TEXT, **fields)


def tiny_method(name: str, backbone: Backbone, **fields: Any) -> Any:
    """The method at its starting point, in evaluation mode."""
    torch.manual_seed(0)
    method: Any = build_method(section(name, **fields), backbone, tiny_tokenizer(backbone.family in ENCODERS))
    return method.eval()


def tiny_tuned(
    name: str,
    backbone: Backbone,
    task: str = "token_classification",
    labels: int = 4,
    *,
    task_fields: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """The whole module, every trainable number away from its starting value: no gradient is zero."""
    method = tiny_method(name, backbone, **fields)
    head = build_task(TASKS.read({"name": task, **(task_fields or {})})).head(backbone, labels)
    tuned = TunedModel(backbone, method, head)
    perturb(tuned)
    return tuned.eval()


def perturb(module: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def batch(
    lengths: tuple[int, ...] = (9, 5, 2), side: str = "right", seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words: input_ids and attention_mask [rows, longest]; the same rows on either side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        words = torch.randint(FIRST_WORD, VOCABULARY_SIZE - 3, (length,), generator=generator)
        place = slice(0, length) if side == "right" else slice(ids.shape[1] - length, None)
        ids[row, place], mask[row, place] = words, 1
    return ids, mask


def real_rows(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[tokens, ...]: the real tokens of all rows, in reading order, whichever side the padding is on."""
    return torch.cat([values[kept] for values, kept in zip(tensor, mask.bool(), strict=True)])
