"""The run's modules without weights, as the loader would build them: the one source of a plan's shapes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig

from sktune.backbone import Backbone
from sktune.backbone.loading import attention_for
from sktune.backbone.skeleton import build_skeleton
from sktune.methods.method import build_method
from sktune.planning.assumptions import labels_of, length_of, tokenizer_of
from sktune.planning.model_configs import config_of
from sktune.recipe.recipe import Recipe
from sktune.tasks import TunedModel, build_head


@dataclass(frozen=True)
class Parts:
    """What a recipe's modules are made from; `build` makes them, at any depth.

    attention: the kernel that the plan counts for.
    length: tokens of the longest row, where the model has as many positions.
    assumptions: what was assumed, in sentences.
    """

    recipe: Recipe
    config: PretrainedConfig
    attention: str
    tokenizer: object
    labels: int
    length: int
    assumptions: tuple[str, ...]

    @property
    def depth(self) -> int:
        """The model's blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def is_uniform(self) -> bool:
        """True where all blocks are alike, as far as the configuration says."""
        kinds: Sequence[str] | None = getattr(self.config, "layer_types", None)
        return kinds is None or len(set(kinds)) == 1

    def with_recipe(self, recipe: Recipe) -> Parts:
        """The same for a recipe that differs in how it trains, not in what."""
        return replace(self, recipe=recipe)

    def build(self, depth: int | None = None) -> TunedModel:
        """Backbone, method and head: parameters on the meta device, of `depth` blocks where it is given."""
        config = copy.deepcopy(self.config)
        if depth is not None:
            config.num_hidden_layers = depth
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:depth]
        recipe = self.recipe
        network = build_skeleton(
            recipe.model,
            recipe.quantization,
            config,
            language_model=recipe.needs_language_model,
            attn_implementation=self.attention,
        )
        backbone = Backbone(
            network,
            attn_implementation=self.attention,
            gradient_checkpointing=recipe.training.gradient_checkpointing,
        )
        with torch.device("meta"):
            method = build_method(recipe.method, backbone, self.tokenizer, recipe.task.labels or ("label",))  # type: ignore[arg-type]
            answer_tokens = range(self.labels) if recipe.method.answers_in_words else None
            head = build_head(recipe.task, backbone, self.labels, answer_tokens)
        return TunedModel(backbone, method, head)


def find_parts(recipe: Recipe) -> Parts:
    """Reads the recipe's architecture and tokenizer; no weights, and no network where the model is built in.

    Raises:
        ValueError: for whatever the user can correct.
    """
    config, architecture_note = config_of(recipe.model)
    tokenizer, length_note = tokenizer_of(recipe)
    labels, labels_note = labels_of(recipe)
    length, template_note = length_of(recipe, tokenizer, labels)
    cpu = torch.device("cpu")
    model = recipe.model
    attention_note = None
    if model.attn_implementation in ("auto", "flash_attention_2"):
        # The fused kernels keep the same for backward: query, key, value, output and a number for each row.
        attention_note = "attention is SDPA's fused kernel; flash-attention keeps the same, less the mask"
        model = model.model_copy(update={"attn_implementation": "auto"})
    attention, _ = attention_for(model, config, cpu, recipe.needs_language_model, recipe.method.visible_prefix)
    notes = (architecture_note, length_note, labels_note, template_note, attention_note)
    return Parts(
        recipe, config, attention, tokenizer, labels, length, tuple(note for note in notes if note is not None)
    )
