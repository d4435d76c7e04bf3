"""The DeepSpeed configuration of a run: a plain file of `ds_configs/`, sized for the recipe and the model.

A shipped configuration (`zero3`, `zero3_offload`, `zero2`) is sized for the model at hand; of a user's own file
only the values written as "auto" are set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.recipe import DEEPSPEED_PRESETS
from sktune.recipe.deepspeed_file import read_deepspeed_file
from sktune.sections import TrainingSection

_AMOUNTS = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)


def shipped_config_path(name: str) -> Path:
    """File of a shipped configuration: in the checkout, or where a wheel's data files are installed."""
    for folder in (Path(__file__).parents[2] / "ds_configs", Path(sys.prefix) / "share" / "sktune" / "ds_configs"):
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    raise UserError(f"distributed.deepspeed: {name}.json was not found beside sktune; reinstall it, or give a file")


def read_deepspeed_config(name: str) -> dict[str, Any]:
    """Reads a shipped configuration by name, or a user's JSON file.

    Raises:
        UserError: for a missing or malformed file, and for settings that would break or contradict the recipe.
    """
    path = shipped_config_path(name) if name in DEEPSPEED_PRESETS else Path(name)
    config = read_deepspeed_file(path)
    zero = config["zero_optimization"]
    for key, value in zero.items():
        if key.startswith("offload_") and value is not None and not isinstance(value, dict):
            raise UserError(
                f"distributed.deepspeed: {name}: zero_optimization.{key} is {value!r}; write an object, for example "
                '{"device": "cpu"}'
            )
        if key in _AMOUNTS and value != "auto" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(
                f'distributed.deepspeed: {name}: zero_optimization.{key} is {value!r}; write a number, or "auto"'
            )
    if zero.get("compute_grad_norm", True) is False:
        raise UserError(
            f"distributed.deepspeed: {name}: remove zero_optimization.compute_grad_norm; the norm is what stops a run "
            "whose gradient is no number"
        )
    for section in ("bf16", "fp16"):
        if isinstance(config.get(section), dict) and config[section].get("enabled") not in (False, None):
            raise UserError(
                f"distributed.deepspeed: {name}: {section}.enabled would cast the fp32 adapter (and packed weights); "
                "remove the section: model.dtype sets the backbone's arithmetic"
            )
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise UserError(f"distributed.deepspeed: {name}: remove `{section}`; the recipe's training section sets it")
    return config


def size_deepspeed_config(
    config: dict[str, Any],
    *,
    shipped: bool,
    training: TrainingSection,
    backbone: Backbone,
    trainable: int,
    ranks: int,
) -> dict[str, Any]:
    """Fills in what depends on recipe and model.

    Args:
        config: as read.
        shipped: size every threshold, not only those written as "auto".
        training: batch, accumulation, clipping.
        backbone: the loaded model; ZeRO-3 counts elements of the packed weights (design fact 16).
        trainable: number of trainable parameters.
        ranks: number of processes.

    Raises:
        UserError: where the file states another batch than the recipe.
    """
    sized = json.loads(json.dumps(config))
    for key, value in {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm or 0.0,
    }.items():
        if sized.get(key, "auto") not in ("auto", value):
            raise UserError(
                f"distributed.deepspeed: {key} is {sized[key]} in the file and {value} in the recipe; "
                'write "auto" in the file'
            )
        sized[key] = value
    total = sized.pop("train_batch_size", "auto")
    expected = training.per_device_train_batch_size * training.gradient_accumulation_steps * ranks
    if total not in ("auto", expected):
        raise UserError(
            f"distributed.deepspeed: train_batch_size is {total} in the file and {expected} on {ranks} rank(s) by the "
            'recipe; write "auto" in the file'
        )
    zero = sized["zero_optimization"]
    layer = largest_layer(backbone)
    # The default bucket of 5e8 is 2 GB of fp32 per rank, for an adapter of a few million parameters (fact 4).
    sizes = {"reduce_bucket_size": max(trainable, 1)}
    if zero.get("stage") == 3:
        sizes |= {
            # The layer in use and the next one, no more, and none between forward and backward: what ZeRO-3 would
            # keep or fetch early there is memory that the activations want.
            "stage3_prefetch_bucket_size": layer,
            "stage3_param_persistence_threshold": 10 * backbone.hidden_size,
            "stage3_max_live_parameters": 2 * layer,
            "stage3_max_reuse_distance": 0,
        }
    elif zero.get("stage") == 2:
        sizes["allgather_bucket_size"] = -(-trainable // 1024) * 1024  # it must be a multiple of the rank alignment
    for key, size in sizes.items():
        if shipped or zero.get(key) == "auto":
            zero[key] = size
    left = [key for key, value in [*sized.items(), *zero.items()] if value == "auto"]
    if left:
        raise UserError(f'distributed.deepspeed: {", ".join(left)}: "auto" is not known here; write a number')
    sized.setdefault("zero_allow_untested_optimizer", True)
    sized["steps_per_print"] = 10**9  # the loop prints its own line
    return sized


def largest_layer(backbone: Backbone) -> int:
    """Elements, packed ones where it is quantized, of the largest layer in a block: what is gathered at once.

    Blocks whose parameters were taken (`lower_blocks`) have none.
    """

    def elements(module: nn.Module) -> int:
        # Of a parameter that is partitioned already, `numel` is 0 and ZeRO knows the whole.
        return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters(recurse=False))

    return max(elements(module) for block in backbone.blocks for module in block.modules())
