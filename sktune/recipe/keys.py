"""Which keys a recipe knows, what each of them allows, and what a wrong key was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from sktune.methods import METHODS
from sktune.recipe.recipe import Recipe
from sktune.sections import Section
from sktune.tasks import TASKS

SECTIONS: tuple[str, ...] = tuple(Recipe.model_fields)
REGISTRIES = {"method": METHODS, "task": TASKS}
"""Sections with a class for each `name`."""

# Names that other tools use for the same thing; close spelling alone would not find them.
KNOWN_ELSEWHERE = {
    "lr": "training.learning_rate",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "patience": "training.early_stopping_patience",
    "scheduler": "training.lr_scheduler_type",
    "model_name_or_path": "model.name_or_path",
    "torch_dtype": "model.dtype",
    "prompt": "method.text",
    "prompt_text": "method.text",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "max_seq_length": "data.max_length",
    "output_dir": "output.dir",
    "overwrite_output_dir": "output.overwrite",
    "resume_from_checkpoint": "training.resume",
    "zero_stage": "distributed.deepspeed",
    "bits": "quantization.load_in_4bit",
    "qlora": "quantization.load_in_4bit",
    "load_in_4_bit": "quantization.load_in_4bit",
    "quant_type": "quantization.bnb_4bit_quant_type",
    "double_quant": "quantization.bnb_4bit_use_double_quant",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "prompt_length": "method.num_virtual_tokens",
    "prefix_length": "method.num_virtual_tokens",
    "peft_type": "method.name",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "precision": "model.dtype",
    "base_model": "model.name_or_path",
    "use_flash_attention": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "grad_accum": "training.gradient_accumulation_steps",
    "accumulate_grad_batches": "training.gradient_accumulation_steps",
    "max_epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "wd": "training.weight_decay",
    "warmup": "training.warmup_ratio",
    "gradient_clip_val": "training.max_grad_norm",
    "clip_grad_norm": "training.max_grad_norm",
    "metric": "training.metric_for_best_model",
    "eval_every": "training.eval_steps",
    "save_every": "training.save_steps",
    "log_every": "training.logging_steps",
    "random_seed": "training.seed",
    "max_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "train_file": "data.train",
    "validation_file": "data.validation",
    "test_file": "data.test",
    "dataset_config_name": "data.name",
    "stage": "distributed.deepspeed",
    "mlflow_tracking_uri": "tracking.tracking_uri",
    "experiment": "tracking.experiment_name",
}

# Values that other tools use; of a section's field, what to write here. Methods and tasks say theirs (`known_as`).
VALUES_ELSEWHERE = {
    ("model", "dtype"): {
        "bf16": "bfloat16",
        "fp16": "float16",
        "half": "float16",
        "fp32": "float32",
        "float": "float32",
    },
}

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts",
    dict: "`name: text` lines",
    NoneType: "null",
}


def variants(section: str) -> dict[str, type[Section]]:
    """The section's class under an empty name, or each of its classes by its `name`; nothing for what is no section."""
    if section in REGISTRIES:
        return {name: REGISTRIES[section].config(name) for name in REGISTRIES[section]}
    cls: Any = Recipe.model_fields[section].annotation if section in SECTIONS else None
    return {} if cls is None else {"": cls}


def keys_of(section: str) -> list[str]:
    """All keys of a section, in the schema's order, over all its variants."""
    return list(dict.fromkeys(key for cls in variants(section).values() for key in cls.model_fields))


def field_info(section: str, key: str) -> FieldInfo | None:
    """The schema's entry of `section.key`, or None where there is none."""
    for cls in variants(section).values():
        if key in cls.model_fields:
            return cls.model_fields[key]
    return None


def takes_text(section: str, key: str) -> bool:
    """Whether a field is a text, with nothing but null and a list of texts beside it."""
    info = field_info(section, key)
    texts: tuple[Any, ...] = (str, str | None, str | tuple[str, ...], str | tuple[str, ...] | None)
    return info is not None and info.annotation in texts


def takes_list(section: str, key: str) -> bool:
    """Whether a field may be a list of texts."""
    info = field_info(section, key)
    return info is not None and tuple[str, ...] in (info.annotation, *get_args(info.annotation))


def allowed_in(info: FieldInfo) -> str:
    """What a field takes, in words: the choices, or the type with its range."""
    limits = []
    for rule in info.metadata:
        if isinstance(rule, annotated_types.MinLen):
            limits.append("not empty")
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(rule, name, None)) is not None:
                limits.append(f"{sign} {bound}")
    return ", ".join([_type_in_words(info.annotation), *limits])


def _type_in_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_in_words(member) for member in get_args(annotation))
    if origin is dict and get_args(annotation)[1] is not str:
        return "`name: ...` lines"
    return _TYPE_NAMES.get(origin or annotation, str(annotation))


def suggest(section: str | None, key: str) -> str:
    """The dotted name a wrong key was probably meant to be, or an empty string.

    Looks among the section's own keys first, then for the same or a similar key in the other sections;
    with `section` None the key stood at the top level, where section names come first.
    """
    own = list(SECTIONS) if section is None else [f"{section}.{name}" for name in keys_of(section)]
    if near := _nearest(key, own):
        return near
    everywhere = [f"{other}.{name}" for other in SECTIONS for name in keys_of(other)]
    return KNOWN_ELSEWHERE.get(key.lower()) or _nearest(key, everywhere)


def meant_value(section: str, key: str, value: Any, choices: Iterable[Any]) -> str:
    """What a wrong value of a field with fixed choices was probably meant to be, or an empty string."""
    if not isinstance(value, str):
        return ""
    text = value.lower().replace("-", "_")
    near = difflib.get_close_matches(text, [str(choice) for choice in choices if isinstance(choice, str)], n=1)
    if key == "name" and section in REGISTRIES:
        registry = REGISTRIES[section]
        for name in registry:
            if (besides := registry.config(name).known_as.get(text)) is not None:
                return f"{section}.name: {name} {besides}".rstrip()
    return VALUES_ELSEWHERE.get((section, key), {}).get(text) or (near[0] if near else "")


def _nearest(key: str, dotted: list[str]) -> str:
    last = {name.rpartition(".")[2]: name for name in reversed(dotted)}
    near = difflib.get_close_matches(key.lower(), last, n=1, cutoff=0.75)
    return last[near[0]] if near else ""
