"""An adapter as a folder of peft: PROMPT_TUNING, PREFIX_TUNING, LORA or IA3, and a token head in `modules_to_save`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from sktune.errors import UserError
from sktune.export.replaying import replay_logits
from sktune.export.trained import Trained, Usage, loading, plain_model
from sktune.tasks.heads import TokenClassificationHead

WEIGHTS = "adapter_model.safetensors"
_ADAPTER = "default"


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the folder; returns how it is read.

    Raises:
        UserError: for what peft has no place for.
    """
    model, woven = trained.setup.model, trained.woven
    trained.refuse_own_weights()
    trained.refuse_hidden_prefix()
    head, task_type = head_of(trained)
    common: dict[str, Any] = {
        "task_type": task_type,
        "base_model_name_or_path": trained.recipe.model.name_or_path,
        "inference_mode": True,
    }
    # Around what is put in front peft wraps the model once, around layers inside it twice.
    place = "base_model.model" if woven.layers is not None else "base_model"
    weights = {f"{place}.{name}": tensor for name, tensor in head.items()}
    config: Any
    if woven.prefix is not None:
        flat, heads = _flat_prefix(woven.prefix)
        weights["prompt_embeddings"] = flat
        layers = len(woven.prefix)
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=len(flat), token_dim=flat.shape[1] // (2 * layers), num_layers=layers,
            num_attention_heads=heads, num_transformer_submodules=1, **common,
        )  # fmt: skip
    elif woven.prompt is not None:
        weights["prompt_embeddings"] = woven.prompt[0].float().contiguous()
        config = peft.PromptTuningConfig(
            num_virtual_tokens=woven.prompt.shape[1], token_dim=woven.prompt.shape[2],
            num_layers=len(model.backbone.blocks), num_transformer_submodules=1,
            num_attention_heads=model.backbone.config.num_attention_heads, **common,
        )  # fmt: skip
    elif woven.layers is not None:
        config = copy.deepcopy(model.backbone.model.peft_config[_ADAPTER])
        for name, value in common.items():
            setattr(config, name, value)
        weights |= _layers(trained)
    else:
        raise UserError(
            f"{trained.folder}: peft has no place for {trained.method}; allowed: what puts a prompt or a prefix in "
            "front of the input, and layers of peft. `--to transformers` takes a head alone"
        )
    if head:
        config.modules_to_save = [next(iter(head)).rpartition(".")[0]]
    config.save_pretrained(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    kind = "AutoModelForCausalLM" if task_type == "CAUSAL_LM" else "AutoModelForTokenClassification"
    labels = "" if not head else f", num_labels={len(trained.setup.labels or ())}"
    return trained.usage(
        f"import torch\nfrom peft import PeftModel\nfrom transformers import {kind}\n\n"
        f"{loading(trained.recipe, kind, labels)}\n"
        f'model = PeftModel.from_pretrained(base, "{folder.name}").eval()'
    )


def replay(trained: Trained, folder: Path, count: int) -> dict[str, Any]:
    """Logits of test examples here and there."""
    return replay_logits(trained, Plain(trained, folder), count)


class Plain:
    """The folder as peft reads it, on transformers' own model."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        if trained.head():
            labels = len(trained.setup.labels or ())
            base = plain_model(trained.recipe, AutoModelForTokenClassification, num_labels=labels)
        else:
            base = plain_model(trained.recipe, AutoModelForCausalLM)
        self.model = peft.PeftModel.from_pretrained(base, str(folder)).eval()

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, L] right-padded -> logits of the input's positions [B, L, outputs]."""
        found: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return found[:, -input_ids.shape[1] :].float()


def head_of(trained: Trained) -> tuple[dict[str, torch.Tensor], str]:
    """The head by its name in transformers' model, and peft's name of the task.

    Raises:
        UserError: for a head that transformers has no like of.
    """
    weights, backbone = trained.head(), trained.setup.model.backbone
    if not weights:
        return {}, "CAUSAL_LM"
    if not isinstance(trained.setup.model.head, TokenClassificationHead):
        raise UserError(
            f"{trained.folder}: transformers' heads for {trained.recipe.task.name} differ from this one (no bias, "
            "another pooling), so none of its models can hold it; use `--to transformers`, or a task that the "
            "language model answers in words"
        )
    if backbone.config.model_type not in _with_token_head():
        raise UserError(f"{trained.folder}: transformers has no token classifier for {backbone.family}")
    name = "classifier" if backbone.is_encoder else "score"
    return {f"{name}.{key}": tensor for key, tensor in weights.items()}, "TOKEN_CLS"


def _with_token_head() -> set[str]:
    from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

    return {config.model_type for config in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING}


def _flat_prefix(prefix: Any) -> tuple[torch.Tensor, int]:
    """[P, layers * 2 * width] in peft's order (each layer's keys, then its values), and the key-value heads."""
    both = [tensor[0].transpose(0, 1).flatten(1).float() for _, (key, value) in prefix for tensor in (key, value)]
    return torch.cat(both, dim=1), prefix[0][1].key.shape[1]


def _layers(trained: Trained) -> dict[str, torch.Tensor]:
    """Layers of peft inside the model, by the names that they have in transformers' model with a head."""
    backbone = trained.setup.model.backbone
    prefix = "" if backbone.is_language_model else f"{backbone.model.base_model_prefix}."
    return {
        f"base_model.model.{prefix}{name.replace(f'.{_ADAPTER}', '')}": parameter.detach().float()
        for name, parameter in backbone.model.named_parameters()
        if parameter.requires_grad
    }
