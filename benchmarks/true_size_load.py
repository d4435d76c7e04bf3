"""Seconds to load a folder of weights in one process, by sktune and by transformers with bitsandbytes.

python benchmarks/true_size_load.py {sktune,stock} RECIPE FOLDER OUTPUT.json
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
import transformers
from resident import own_memory
from transformers import AutoModelForCausalLM

from sktune.backbone.loading import load_backbone
from sktune.backbone.placement import OneProcess
from sktune.recipe import load_recipe


def drop_from_cache(folder: Path) -> None:
    """Both are to read from the disk."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    stack, recipe_file, folder, output = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    recipe = load_recipe(recipe_file, [f"model.name_or_path={folder}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drop_from_cache(Path(folder))
    before = own_memory()
    started = time.perf_counter()
    if stack == "sktune":
        model: object = load_backbone(
            recipe.model, recipe.quantization, language_model=True, placement=OneProcess(device)
        )
    else:
        from stock_quantization import quantization_config

        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization_config(recipe), dtype=getattr(torch, recipe.model.dtype)
        )
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    after = own_memory()
    output.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": time.process_time(),
                "threads": torch.get_num_threads(),
                "anonymous_bytes_grown": after["anonymous"] - before["anonymous"],
                "file_bytes_after": after["file"],
            }
        ),
        encoding="utf-8",
    )
    del model


if __name__ == "__main__":
    main()
