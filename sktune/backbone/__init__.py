"""The frozen model: loading, quantization, attention with a prefix, and reading the prompt text."""

from sktune.backbone.frozen import Backbone
from sktune.backbone.loading import load_backbone, load_tokenizer
from sktune.backbone.prompt_reading import PromptSemantics, read_hidden_states, read_keys_and_values
from sktune.backbone.weaving import NOTHING, Woven

__all__ = [
    "NOTHING",
    "Backbone",
    "PromptSemantics",
    "Woven",
    "load_backbone",
    "load_tokenizer",
    "read_hidden_states",
    "read_keys_and_values",
]
