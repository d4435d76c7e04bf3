"""A decoder's tokenizer for rows that go on behind a text, which has brought the BOS already."""

from __future__ import annotations

import copy
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

_ORIGINAL = "_sktune_original"
"""Where the copy keeps the tokenizer that it was made of."""


def continuing(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that puts no special tokens around a text; the tokenizer itself stays as it is."""
    other = copy.deepcopy(tokenizer)
    backend: Any = getattr(other, "backend_tokenizer", None)
    if backend is not None and backend.post_processor is not None:
        state = json.loads(backend.post_processor.__getstate__())
        processor = backend.post_processor
        processor.__setstate__(json.dumps(_without_special(state)).encode())
        backend.post_processor = processor
    setattr(other, _ORIGINAL, tokenizer)
    return other


def original(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that a copy was made of, which opens a sequence; any other is its own."""
    found: PreTrainedTokenizerBase = getattr(tokenizer, _ORIGINAL, tokenizer)
    return found


def _without_special(state: dict[str, Any]) -> dict[str, Any]:
    """A post-processor's state (of one, or of several in a row) whose templates hold the texts alone."""
    if "processors" in state:
        return {**state, "processors": [_without_special(part) for part in state["processors"]]}
    if state.get("type") != "TemplateProcessing":
        return state
    texts = {key: [piece for piece in state[key] if "Sequence" in piece] for key in ("single", "pair")}
    return {**state, **texts}
