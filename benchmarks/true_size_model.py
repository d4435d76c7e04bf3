"""Folders of random weights in the true shapes of the recipes' models, a tokenizer, and a little data."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from launching import ROOT
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaTokenizer, PretrainedConfig

DTYPES = {"llama7b_conll": torch.float16, "mistral7b_conll": torch.bfloat16}
"""The recipes, and the dtype in which the hub has their models."""
BITS = {"llama7b_conll": 4, "mistral7b_conll": 8}
EMBEDDED_TOKENIZER = ROOT / "sktune" / "embedded" / "model" / "tokenizer.model"
TINY = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8}
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
ROWS, TOKENS = 2, 16
"""Batch of a rank: rows, each cut to so many tokens."""
SENTENCES = {"train": 64, "dev": 8, "test": 8}


def recipe_file(name: str) -> Path:
    """The shipped recipe."""
    return ROOT / "recipes" / f"{name}.yaml"


def config_of(name: str, tiny: bool) -> PretrainedConfig:
    """The architecture of a recipe's model; `tiny`: narrow and shallow, of the same family."""
    folder = ROOT / "sktune" / "planning" / "configs"
    file = {"llama7b_conll": "llama-2-7b.json", "mistral7b_conll": "mistral-7b-v0.1.json"}[name]
    numbers: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
    if tiny:
        grouped = numbers["num_attention_heads"] // numbers["num_key_value_heads"]
        numbers |= TINY | {"num_key_value_heads": TINY["num_attention_heads"] // grouped}
    return AutoConfig.for_model(**numbers)


def shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of the checkpoint, by name."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def bytes_of(config: PretrainedConfig) -> int:
    """Bytes of a checkpoint in 16 bits."""
    return 2 * sum(math.prod(shape) for shape in shapes(config).values())


def check_disk(folder: Path, needed: int) -> None:
    """Ends the program where there is no room."""
    free = shutil.disk_usage(folder).free
    print(f"the weights take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free in {folder}", flush=True)
    if free < needed + 10**9:
        sys.exit(f"not enough: {(needed + 10**9) / 1e9:.1f} GB are needed; name another place with --folder")


def write_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype, tokenizer: Path) -> dict[str, Any]:
    """Writes a folder as the hub has it: a file for each block and one for the rest; one file's memory at a time.

    Matrices are normal with the config's deviation: slices of one block of random numbers, from different places.
    """
    config.architectures = [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[config.model_type]]
    config.dtype = dtype
    config.save_pretrained(folder)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes(config).items():
        block = re.search(r"layers\.(\d+)\.", name)
        files.setdefault(block[1] if block else "rest", {})[name] = shape
    generator = torch.Generator().manual_seed(7)
    numbers = (torch.randn(2**22 + 1, generator=generator) * config.initializer_range).to(dtype)
    weight_map: dict[str, str] = {}
    for index, tensors in enumerate(files.values(), 1):
        file = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        made = {name: _filled(shape, numbers, generator) for name, shape in tensors.items()}
        save_file(made, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(made, file)
        del made
    size = bytes_of(config)
    index_file = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file), encoding="utf-8")
    vocabulary = write_tokenizer(folder, tokenizer)
    assert vocabulary <= config.vocab_size, f"{tokenizer} has {vocabulary} pieces, the model {config.vocab_size}"
    return {"bytes": size, "files": len(files), "dtype": str(dtype).removeprefix("torch."), "tokenizer": tokenizer.name}


def _filled(shape: tuple[int, ...], numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # a norm's scale
        return torch.ones(shape, dtype=numbers.dtype)
    result = torch.empty(math.prod(shape), dtype=numbers.dtype)
    start = int(torch.randint(len(numbers), (), generator=generator))
    done = 0
    while done < len(result):
        part = numbers[start : start + len(result) - done]
        result[done : done + len(part)] = part
        done, start = done + len(part), 0
    return result.view(shape)


def write_tokenizer(folder: Path, model: Path) -> int:
    """Writes the fast tokenizer of a SentencePiece model; returns how many ids it has."""
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(model, Path(temporary) / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(temporary, add_bos_token=True)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_data(folder: Path) -> None:
    """CoNLL files of made-up words, every sentence longer than a row, so that no position is padding."""
    generator = random.Random(7)
    folder.mkdir(parents=True)
    for split, sentences in SENTENCES.items():
        lines = [
            "".join(
                f"{''.join(generator.choices('abcdefghij', k=generator.randint(2, 7)))} {generator.choice(TAGS)}\n"
                for _ in range(TOKENS + 4)
            )
            for _ in range(sentences)
        ]
        (folder / f"{split}.conll").write_text("\n".join(lines), encoding="utf-8")


def overrides(model: Path, data: Path, output: Path, steps: int = 8) -> list[str]:
    """What must differ from the shipped recipe: where model, data and results are, the batch, and how long it runs."""
    return [
        f"model.name_or_path={model}",
        *(f"data.path={data}", "data.train=train.conll", "data.validation=dev.conll", "data.test=test.conll"),
        f"data.max_length={TOKENS}",
        *(f"training.per_device_train_batch_size={ROWS}", f"training.per_device_eval_batch_size={ROWS}"),
        *(f"training.max_steps={steps}", f"training.eval_steps={steps}"),
        *("training.save_steps=2", "training.logging_steps=1"),
        f"output.dir={output}",
        f"tracking.tracking_uri=sqlite:///{output.parent}/mlflow.db",
    ]
