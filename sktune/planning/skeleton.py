"""The run's modules without weights, as the loader would build them, and what had to be assumed about the data."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from sktune.backbone.frozen import Backbone
from sktune.backbone.loading import attention_for, load_tokenizer
from sktune.backbone.model_files import find_gguf
from sktune.backbone.skeleton import build_skeleton, read_config
from sktune.embedded import is_embedded, is_fetched
from sktune.errors import UserError
from sktune.methods.method import build_method
from sktune.model.tuned_model import TunedModel
from sktune.recipe import Recipe
from sktune.tasks.heads import Head, LabelWordHead
from sktune.tasks.task import build_task

CONFIGS = Path(__file__).parent / "configs"
"""Public numbers of the models that the recipes name; `names.json`: hub id -> file."""
PIECES_PER_WORD = 1.5


@dataclass(frozen=True)
class Skeleton:
    """What a recipe's modules are made from; `length` is that of the longest row, in tokens."""

    recipe: Recipe
    config: PretrainedConfig
    attention: str
    tokenizer: Any
    labels: int
    length: int
    assumptions: tuple[str, ...]

    @property
    def depth(self) -> int:
        """The model's blocks."""
        return int(self.config.num_hidden_layers)

    def build(self, depth: int | None = None) -> TunedModel:
        """Backbone, method and head: parameters on the meta device, of `depth` blocks where it is given."""
        recipe, config = self.recipe, copy.deepcopy(self.config)
        if depth is not None:
            config.num_hidden_layers = depth
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:depth]
        attention: dict[str, Any] = {"attn_implementation": self.attention}
        language_model = recipe.needs_language_model
        network = build_skeleton(recipe.model, recipe.quantization, config, language_model=language_model, **attention)
        backbone = Backbone(network, gradient_checkpointing=recipe.training.gradient_checkpointing, **attention)
        with torch.device("meta"):
            method = build_method(recipe.method, backbone, self.tokenizer, recipe.task.given_labels or ("label",))
            if recipe.method.answers_in_words:
                head: Head = LabelWordHead(range(self.labels))
            else:
                head = build_task(recipe.task).head(backbone, self.labels)
        return TunedModel(backbone, method, head)


def find_skeleton(recipe: Recipe) -> Skeleton:
    """Reads the recipe's architecture and tokenizer; no weights, and no network where the model is built in.

    Raises:
        UserError: for whatever the user can correct.
    """
    notes: list[str] = []
    config = _config(recipe, notes)
    tokenizer = _tokenizer(recipe, notes)
    labels = count_labels(recipe, notes)
    length, note = recipe.method.longest_row(recipe.data, labels, lambda text: len(tokenizer(text)["input_ids"]))
    notes += [note] if note is not None else []
    model = recipe.model
    if model.attn_implementation in ("auto", "flash_attention_2"):
        # The fused kernels keep the same for backward: query, key, value, output and a number for each row.
        notes.append("attention is SDPA's fused kernel; flash-attention keeps the same, less the mask")
        model = model.model_copy(update={"attn_implementation": "auto"})
    cpu = torch.device("cpu")
    attention, _ = attention_for(model, config, cpu, recipe.needs_language_model, recipe.method.visible_prefix)
    return Skeleton(recipe, config, attention, tokenizer, labels, length, tuple(notes))


def _is_local(name: str) -> bool:
    """Whether a model is a folder or a file here; an `embedded:` one may not have been fetched."""
    return is_fetched(name) if is_embedded(name) else Path(name).exists() or name.endswith(".gguf")


def _config(recipe: Recipe, notes: list[str]) -> PretrainedConfig:
    """A folder's own configuration, a built-in one, or one from the hub's cache or the hub."""
    name = recipe.model.name_or_path
    built_in: dict[str, str] = json.loads((CONFIGS / "names.json").read_text(encoding="utf-8"))
    if name in built_in and not _is_local(name):
        notes.append(f"the architecture of {name} is the built-in one")
        return AutoConfig.for_model(**json.loads((CONFIGS / f"{built_in[name]}.json").read_text(encoding="utf-8")))
    try:
        return read_config(recipe.model)
    except UserError as error:
        if _is_local(name):
            raise
        known = ", ".join(sorted(name for name in built_in if "/" in name))
        raise UserError(
            f"model.name_or_path: nothing is known here of {name!r}; give a folder with its config.json "
            f"(model.name_or_path=my/folder), or one of the models that are built in: {known} ({error})"
        ) from error


class CountedTokenizer:
    """Stands for a tokenizer that is not on this machine: it estimates how many tokens a text has."""

    cls_token_id = None
    eos_token_id = None
    all_special_ids = (0,)

    def __len__(self) -> int:
        return 32_000  # methods only ask for some token that is not special

    def __call__(self, text: str, add_special_tokens: bool = True, **_: bool) -> dict[str, list[Any]]:
        """A BOS, and `PIECES_PER_WORD` tokens for each word and punctuation mark, rounded up."""
        words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        count = int(-(-len(words) * PIECES_PER_WORD // 1))
        spans = [(0, 0)] * add_special_tokens + [words[int(i / PIECES_PER_WORD)] for i in range(count)]
        return {"input_ids": [0] * len(spans), "offset_mapping": spans}


def _tokenizer(recipe: Recipe, notes: list[str]) -> Any:
    """The recipe's tokenizer where it is on this machine, else one that counts words."""
    model = recipe.model
    name = model.tokenizer or model.name_or_path
    if _is_local(name):
        if is_embedded(name) or any(Path(name).glob("*token*")) or _is_gguf(recipe, name):
            return load_tokenizer(model)
    else:
        options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=True, **options)
        except Exception:  # whatever the cache lacks, the words are counted instead
            pass
    counted, text = CountedTokenizer(), getattr(recipe.method, "text", None)
    if text is not None:
        notes.append(
            f"method.text is {len(counted(text)['input_ids'])} tokens long: {PIECES_PER_WORD} for each of its words, "
            f"since the tokenizer of {name} is not on this machine"
        )
    return counted


def _is_gguf(recipe: Recipe, name: str) -> bool:
    """Whether the tokenizer is in a GGUF file's header."""
    model = recipe.model
    field = "model.tokenizer" if model.tokenizer else "model.name_or_path"
    return find_gguf(name, None if model.tokenizer else model.gguf_file, model.revision, field=field) is not None


def count_labels(recipe: Recipe, notes: list[str]) -> int:
    """Of the recipe, or as many as its task assumes, which is then noted; 1 where there is no label set."""
    given = recipe.task.given_labels or getattr(recipe.method, "label_words", None)
    if given is not None:
        return len(given)
    assumed = recipe.task.assumed_labels
    if recipe.task.has_label_set:
        notes.append(f"the data has {assumed} labels (the recipe does not list them)")
    return assumed
