"""A DeepSpeed file of the user's own: whether it can be one, as far as can be said without DeepSpeed."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from sktune.errors import UserError

PRESETS = ("zero3", "zero3_offload", "zero2")
LARGEST_FILE = 2**20

KEYS = frozenset(
    {
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
        "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "bf16", "fp16",
        "optimizer", "scheduler", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state",
        "prescale_gradients", "gradient_predivide_factor", "communication_data_type",
        "seq_parallel_communication_data_type", "data_types", "comms_logger", "flops_profiler", "aio", "tensorboard",
        "wandb", "csv_monitor", "comet", "graph_harvesting", "disable_allgather", "load_universal_checkpoint", "timers",
    }
)  # fmt: skip
"""Of the file: what DeepSpeed reads and has a meaning for a frozen model. It passes over all others without a word."""

ZERO_KEYS = frozenset(
    {
        "stage", "allgather_bucket_size", "allgather_partitions", "allgather_sequential", "compute_grad_norm",
        "contiguous_gradients", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "elastic_checkpoint",
        "enable_sanity_checks", "gather_16bit_weights_on_model_save", "ignore_unused_parameters", "leaf_module",
        "legacy_stage1", "load_from_fp32_weights", "log_trace_cache_warnings", "max_live_parameters",
        "max_reuse_distance", "memory_efficient_linear", "model_persistence_threshold", "module_granularity_threshold",
        "offload_optimizer", "offload_param", "overlap_comm", "override_module_apply", "param_persistence_threshold",
        "parameter_alignment", "pipeline_loading_checkpoint", "prefetch_bucket_size", "reduce_bucket_size",
        "reduce_scatter", "round_robin_gradients", "save_muon_momentum_buffer_in_memory",
        "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
        "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
        "sub_group_size", "stage3_allgather_sequential", "use_all_reduce_for_fetch_params",
        "stage3_use_all_reduce_for_fetch_params", "use_multi_rank_bucket_allreduce", "zenflow",
        "zero_hpz_partition_size", "zero_quantized_gradients", "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
    }
)  # fmt: skip
"""Of `zero_optimization`, as DeepSpeed 0.19 knows them (a test compares)."""


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration, with a ZeRO stage of 1 to 3 and no key that DeepSpeed would pass over.

    Raises:
        UserError: naming the file, what is wrong and where.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        _refuse(path, f"no file {str(path)!r}; allowed: {', '.join(PRESETS)}, null, or a JSON file")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")
    if len(raw) > LARGEST_FILE:
        _refuse(path, f"is larger than {LARGEST_FILE:,} bytes, so it is no configuration")
    try:
        config = json.loads(raw.decode("utf-8-sig"), parse_constant=lambda name: math.nan)
    except json.JSONDecodeError as error:
        _refuse(path, f"line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        _refuse(path, f"cannot be read as a JSON file: {error}")
    if not isinstance(config, dict):
        _refuse(path, "expected a JSON object at the top")
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or isinstance(stage, bool) or stage not in (1, 2, 3):
        _refuse(path, "zero_optimization.stage must be 1, 2 or 3; for no ZeRO write null in the recipe")
    for name in _not_finite(config):
        _refuse(path, f"{name} is no finite number")
    for prefix, content, known in (("", config, KEYS), ("zero_optimization.", zero, ZERO_KEYS)):
        if unknown := [key for key in content if key not in known]:
            near = get_close_matches(unknown[0], known, n=1)
            cure = f"did you mean {prefix}{near[0]}?" if near else "remove it."
            _refuse(path, f"{prefix}{unknown[0]} is no setting of DeepSpeed for a frozen model; {cure}")
    return config


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name
    items: Collection[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        yield from _not_finite(item, f"{name}.{key}" if name else str(key))


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"distributed.deepspeed: {path}: {what}") from None
