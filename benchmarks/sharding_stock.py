"""What sktune is compared with: the same module and engine around what transformers and bitsandbytes load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from stock_quantization import quantization_config
from torch import nn
from transformers import AutoModel, PreTrainedModel, set_seed
from transformers.integrations import HfDeepSpeedConfig

from sktune.backbone import Backbone, load_tokenizer
from sktune.data import Collator
from sktune.distributed.ranks import Ranks
from sktune.methods.method import build_method
from sktune.model.tuned_model import TunedModel
from sktune.recipe import Recipe
from sktune.tasks.task import build_task
from sktune.training.setup import Setup
from sktune.training.sharding import decide_sharding


def load_stock(recipe: Recipe) -> PreTrainedModel:
    """The model as `from_pretrained` gives it under ZeRO-3: transformers shards it at once unless it is quantized."""
    arguments: dict[str, Any] = {"dtype": getattr(torch, recipe.model.dtype), "attn_implementation": "sdpa"}
    if recipe.quantization.bits is not None:
        arguments["quantization_config"] = quantization_config(recipe)
    # transformers asks whether such an object lives; without the second section ZeRO-3 would make it fp32.
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    zero3 = HfDeepSpeedConfig({**config, "bf16": {"enabled": recipe.model.dtype == "bfloat16"}})
    network: PreTrainedModel = AutoModel.from_pretrained(recipe.model.name_or_path, use_safetensors=True, **arguments)
    del zero3
    return network


def load_reference(folder: Path, codes: Path) -> PreTrainedModel:
    """The unsharded fp32 model of plain linear layers that hold what 8-bit codes stand for.

    Args:
        folder: of the unquantized model.
        codes: safetensors with `<layer>.weight` int8 and `<layer>.scale` fp32, of every quantized layer.
    """
    network: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    stored = load_file(codes)
    for name in sorted({key.rsplit(".", 1)[0] for key in stored}):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight.copy_(stored[f"{name}.weight"].float() * (stored[f"{name}.scale"] / 127)[:, None])
    return network


def assemble_around(network: PreTrainedModel, recipe: Recipe, ranks: Ranks, labels: tuple[str, ...]) -> Setup:
    """Everything of a run but its data, around a loaded model, as `sktune.training.setup.prepare` builds it."""
    tokenizer = load_tokenizer(recipe.model)
    backbone = Backbone(
        network, attn_implementation="sdpa", gradient_checkpointing=recipe.training.gradient_checkpointing
    )
    set_seed(recipe.training.seed)
    method = build_method(recipe.method, backbone, tokenizer)
    task = build_task(recipe.task)
    model = TunedModel(backbone, method, task.head(backbone, len(labels)))
    assert tokenizer.pad_token_id is not None
    collator = Collator(tokenizer.pad_token_id, recipe.data.padding_side, task)
    return Setup(recipe, tokenizer, model, labels, collator, None, decide_sharding(recipe, ranks), task)
