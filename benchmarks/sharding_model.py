"""The LLaMA of random weights that the benchmark shards, its tokenizer, its recipe and its batches."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

FULL = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 8, "num_attention_heads": 16}
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
UNEVEN = {"hidden_size": 80, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 5}
"""Neither 2 nor 3 ranks divide its scales, nor groups of 64 its rows."""
VOCABULARY = 1000
TOKENS = 16
LABELS = tuple("abcdefghi")
TEXT = "find the names of people and places"


def write_model(folder: Path, shape: dict[str, int], weights: bool = True) -> None:
    """Writes config, tokenizer and bf16 safetensors of a LLaMA with the same random weights every time."""
    config = LlamaConfig(**shape, vocab_size=VOCABULARY, pad_token_id=1, bos_token_id=0, eos_token_id=2)  # type: ignore[arg-type]
    config.save_pretrained(folder)
    if weights:
        torch.manual_seed(7)
        LlamaModel._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", *TEXT.split()]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_recipe(
    path: Path, model: Path, bits: int, *, dtype: str = "bfloat16", rows: int = 1, checkpointing: bool = True
) -> None:
    """Writes the recipe of a cell: SK-Prefix with one shared adapter of rank 8, token classification, ZeRO-3.

    Args:
        path: of the recipe.
        model: folder of `write_model`.
        bits: 16 (no quantization), 8 or 4.
        dtype: of the model.
        rows: batch size of a rank.
        checkpointing: recompute blocks in backward.
    """
    recipe: dict[str, Any] = {
        "model": {"name_or_path": str(model), "dtype": dtype},
        "quantization": {4: {"load_in_4bit": True}, 8: {"load_in_8bit": True}}.get(bits, {}),
        "method": {"name": "sk_prefix", "text": TEXT, "rank": 8, "shared": True},
        "task": {"name": "token_classification", "labels": list(LABELS)},
        "data": {"path": "never-read", "format": "jsonl", "max_length": TOKENS},
        "training": {
            "per_device_train_batch_size": rows,
            "per_device_eval_batch_size": rows,
            "max_steps": 20,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "gradient_checkpointing": checkpointing,
        },
        "distributed": {"deepspeed": "zero3"},
        "tracking": {"enabled": False},
        "output": {"dir": str(path.parent / "never-written")},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")


def batch(seed: int, rows: int, rank: int, ranks: int) -> dict[str, Any]:
    """This rank's share of a global batch of `rows` random rows of 16 tokens, the same for any number of ranks.

    A loss of it is this rank's share of the mean over the global batch.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(4, VOCABULARY, (rows, TOKENS), generator=generator)
    labels = torch.randint(len(LABELS), (rows, TOKENS), generator=generator)
    share = slice(rank * rows // ranks, (rank + 1) * rows // ranks)
    return {"input_ids": input_ids[share], "labels": labels[share], "num_items_in_batch": rows * TOKENS}
