"""Architectures that are known without a network: the public numbers of the models that the recipes name."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from sktune.backbone.skeleton import read_config
from sktune.embedded import is_embedded
from sktune.sections import ModelSection

FOLDER = Path(__file__).parent / "configs"
BUILT_IN = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Llama-2-13b-chat-hf": "llama-2-13b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Llama-2-70b-chat-hf": "llama-2-70b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.1": "mistral-7b-v0.1",
    "mistralai/Mistral-7B-v0.2": "mistral-7b-v0.2",
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral-7b-v0.2",
    "mistralai/Mistral-7B-v0.3": "mistral-7b-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b-v0.3",
    "FacebookAI/roberta-base": "roberta-base",
    "roberta-base": "roberta-base",
}
"""Hub id -> file in `configs/`."""


def is_local(name: str) -> bool:
    """True where a model's name needs no hub: a folder, a file, or a model shipped with sktune."""
    return is_embedded(name) or Path(name).exists() or name.endswith(".gguf")


def config_of(model: ModelSection) -> tuple[PretrainedConfig, str | None]:
    """The architecture of a recipe's model, and what was assumed about it.

    A local folder is read; of a hub id the built-in numbers are taken, so that no network is needed, and what is
    neither is looked for in the hub's cache and on the hub.

    Raises:
        ValueError: where the architecture cannot be found.
    """
    name = model.name_or_path
    if name in BUILT_IN and not is_local(name):
        numbers = json.loads((FOLDER / f"{BUILT_IN[name]}.json").read_text(encoding="utf-8"))
        return AutoConfig.for_model(**numbers), f"the architecture of {name} is the built-in one"
    try:
        return read_config(model), None
    except ValueError as error:
        if is_local(name):
            raise
        known = ", ".join(sorted(set(BUILT_IN) - {"roberta-base"}))
        raise ValueError(
            f"model.name_or_path: nothing is known here of {name!r}; give a folder with its config.json "
            f"(model.name_or_path=my/folder), or one of the models that are built in: {known} ({error})"
        ) from error
