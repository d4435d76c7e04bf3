"""What an adapter attached from Python belongs to: written into its card, and compared when it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.prompt_text import PromptText
from sktune.tasks.config import TaskConfig

IDENTITY = "belongs_to"
"""Key of the card."""

_OF_TRAINING = ("method.dropout", "method.semantics")
"""Settings that change what training does, not what the trained weights mean."""
_WITHOUT_MEANING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache")
"""Of a model's configuration: a folder may be copied, quantized, and read with another version."""


def identity(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    task: TaskConfig,
    num_labels: int | None,
) -> dict[str, Any]:
    """By field: settings of method and task, the text's token ids, and digests of configuration and vocabulary."""
    texts = [module.input_ids for module in method.modules() if isinstance(module, PromptText)]
    config = {key: value for key, value in backbone.config.to_dict().items() if key not in _WITHOUT_MEANING}
    fields: dict[str, Any] = {
        **{f"method.{key}": value for key, value in method.config.model_dump(mode="json").items()},
        **{f"task.{key}": value for key, value in task.model_dump(mode="json").items()},
        "num_labels": num_labels,
        "text's token ids": [text.flatten().tolist() for text in texts if not text.is_meta],
        "model's configuration": digest(config),
        "tokenizer's vocabulary": digest(tokenizer.get_vocab()),
    }
    return {field: value for field, value in fields.items() if field not in _OF_TRAINING}


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
