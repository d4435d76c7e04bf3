"""What an adapter belongs to: written into its card, and compared when it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText
from sktune.tasks.config import TaskConfig

IDENTITY = "belongs_to"
"""Key of the card."""

TOKENS = "text's token ids"
"""Field of the texts that the method reads or starts from."""
MODEL, VOCABULARY = "model's configuration", "tokenizer's vocabulary"
"""Fields of digests: what is left of a frozen model's name where folders are moved and renamed."""
_OF_TRAINING = (
    "method.dropout",
    "method.semantics",
    "task.head_dropout",
    "task.class_weights",
    "task.label_smoothing",
    "task.label_separator",
    "task.max_new_tokens",
)
"""Settings that change what training, reading or writing does, not what the trained weights mean."""
_SAID_OTHERWISE = ("task.labels",)
"""The labels are a field of their own, wherever they come from."""
_WITHOUT_MEANING = frozenset(
    {
        *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache"),
        *("architectures", "problem_type", "id2label", "label2id", "pad_token_id", "bos_token_id", "eos_token_id"),
        *("output_hidden_states", "output_attentions", "return_dict"),
    }
)
"""Of a model's configuration: a folder may be copied, quantized, read with another version, and set for other tools."""


def identity(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    task: TaskConfig,
    num_labels: int | None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """By field: settings of method and task, labels, the text's token ids, and digests of configuration and vocabulary.

    No weight is read: the model may be shared out among ranks.
    """
    texts = texts_of(method)
    config = {key: value for key, value in backbone.config.to_dict().items() if key not in _WITHOUT_MEANING}
    fields: dict[str, Any] = {
        **{f"method.{key}": value for key, value in method.config.model_dump(mode="json").items()},
        **{f"task.{key}": value for key, value in task.model_dump(mode="json").items()},
        "num_labels": num_labels,
        **({} if labels is None else {"labels": list(labels)}),
        "language model": backbone.is_language_model,
        TOKENS: [text.input_ids.flatten().tolist() for text in texts if not text.input_ids.is_meta],
        MODEL: digest(config),
        VOCABULARY: digest(tokenizer.get_vocab()),
    }
    left_out = {*_OF_TRAINING, *_SAID_OTHERWISE}
    return {field: value for field, value in fields.items() if field not in left_out}


def texts_of(method: Method) -> list[PromptText]:
    """The texts that a method reads or starts from, in the order of its modules."""
    return [module for module in method.modules() if isinstance(module, PromptText)]


def drawn_tokens(method: Method, saved: Mapping[str, Any]) -> dict[PromptText, torch.Tensor]:
    """Of texts whose tokens were drawn at random, the ids [1, P] that saved weights were trained with.

    A text of another length has none: `compare` then says so.
    """
    pairs = zip(texts_of(method), saved.get(TOKENS, ()), strict=False)
    return {text: torch.tensor([ids]) for text, ids in pairs if text.drawn and len(ids) == len(text)}


def compare(saved: Mapping[str, Any], here: Mapping[str, Any], source: str) -> None:
    """Holds what saved weights belong to against the model they are put into.

    Raises:
        UserError: naming every field that differs, with both values.
    """
    # Only what both know: a later version's new setting is not a difference.
    differing = [field for field in here if field in saved and saved[field] != here[field]]
    if differing:
        named = "; ".join(f"{field} is {saved[field]!r} there and {here[field]!r} here" for field in differing)
        raise UserError(
            f"{source}: its weights do not fit this recipe: {named}; attach as it was attached when it was saved"
        )


def digest(value: object) -> str:
    """Sixteen hexadecimal digits that stand for a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "replace")).hexdigest()[:16]


def digest_of_each(values: Iterable[object]) -> str:
    """The same of many values in their order, one by one: the text of all would take more memory than they do."""
    found = hashlib.sha256()
    for value in values:
        found.update(digest(value).encode())
    return found.hexdigest()[:16]
