"""Rebuild everything that is shipped here: `python -m sktune.embedded.build [--output DIR] [--steps N]`.

One seed decides the names, the texts, the tokenizer, the initial weights and the order of training; on the
same machine with the same library versions and thread count the outputs are the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from sktune.embedded.catalog import SHIPPED
from sktune.embedded.corpus import documents
from sktune.embedded.datasets import SIZES, write_datasets
from sktune.embedded.names import Split
from sktune.embedded.pretrain import Schedule, Shape, evaluate, new_model, packed_batches, pretrain
from sktune.embedded.tokenizer import train_tokenizer

SEED = 7
VOCAB_SIZE = 1024
TOKENIZER_DOCUMENTS = 6000
HELD_OUT_BATCHES = 8
SCHEDULE = Schedule()
SHAPE = Shape()
_LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece")


def build(
    output: Path,
    *,
    seed: int = SEED,
    schedule: Schedule = SCHEDULE,
    shape: Shape = SHAPE,
    vocab_size: int = VOCAB_SIZE,
    tokenizer_documents: int = TOKENIZER_DOCUMENTS,
    sizes: dict[Split, int] = SIZES,
) -> dict[str, object]:
    """Write `data/`, `model/` and `build.json` below `output`; returns what build.json says.

    The model is trained in fp32 and saved in float16; the held-out loss is of the saved weights.
    """
    started = time.monotonic()
    write_datasets(output / "data", seed, sizes)
    folder = output / "model"
    lines = (line for text in islice(documents(seed), tokenizer_documents) for line in text.split("\n"))
    tokenizer = train_tokenizer(lines, folder, vocab_size)
    torch.manual_seed(seed)
    model = new_model(shape, tokenizer)
    batches = packed_batches(documents(seed), tokenizer, schedule.batch_size, schedule.length)
    train_loss = pretrain(model, batches, schedule)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    unseen = packed_batches(documents(seed + 1), tokenizer, schedule.batch_size, schedule.length)
    record: dict[str, object] = {
        "seed": seed,
        "steps": schedule.steps,
        "tokens": schedule.steps * schedule.batch_size * schedule.length,
        "parameters": saved.num_parameters(),
        "train_loss": round(train_loss, 4),
        "held_out_loss": round(evaluate(saved, list(islice(unseen, HELD_OUT_BATCHES))), 4),
        "seconds": round(time.monotonic() - started),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in _LIBRARIES},
        "sha256": {path.relative_to(output).as_posix(): _sha256(path) for path in _outputs(output)},
    }
    (output / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _outputs(output: Path) -> list[Path]:
    return sorted(path for part in ("data", "model") for path in (output / part).rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sktune.embedded.build", description=__doc__)
    parser.add_argument("--output", type=Path, default=SHIPPED, help="default: the package itself")
    parser.add_argument("--steps", type=int, default=SCHEDULE.steps, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.threads < 1:
        raise SystemExit("error: --steps and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    record = build(options.output, schedule=Schedule(steps=options.steps))
    print(json.dumps({key: value for key, value in record.items() if key not in ("sha256", "versions")}))


if __name__ == "__main__":
    main()
