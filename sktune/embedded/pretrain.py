"""Pretraining of the embedded LLaMA: packed documents, next-token loss, AdamW with a cosine schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shape:
    """Size of the model; widths are multiples of 64, the block of 4-bit quantization."""

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2


@dataclass(frozen=True)
class Schedule:
    """Length of training and its batches."""

    steps: int = 2400
    batch_size: int = 24
    length: int = 96
    learning_rate: float = 4e-3
    warmup: int = 50


Batch = tuple[torch.Tensor, torch.Tensor]


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A freshly initialised fp32 LLaMA with tied embeddings for the tokenizer."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def packed_batches(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, batch_size: int, length: int
) -> Iterator[Batch]:
    """Batches of token ids and position ids, both int64 `[batch_size, length]`.

    Documents follow one another, each from `<s>` to `</s>` with positions from 0: transformers reads the
    restarts as borders that attention does not cross. A document cut by a row's end is dropped there.
    """
    rows: list[list[int]] = []
    places: list[list[int]] = []
    row: list[int] = []
    place: list[int] = []
    for document in documents:
        ids = [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
        row += ids
        place += range(len(ids))
        if len(row) < length:
            continue
        rows.append(row[:length])
        places.append(place[:length])
        row, place = [], []
        if len(rows) == batch_size:
            yield torch.tensor(rows), torch.tensor(places)
            rows, places = [], []


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean next-token cross-entropy in nats; no document predicts the first token of the next one."""
    ids, positions = batch
    labels = ids.masked_fill(positions == 0, -100)
    return model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss


def pretrain(
    model: LlamaForCausalLM,
    batches: Iterator[Batch],
    schedule: Schedule,
    report: Callable[[str], None] = print,
) -> float:
    """Train in place; returns the mean loss of the last tenth of the steps."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, schedule))
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step in range(1, schedule.steps + 1):
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == schedule.steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            report(f"step {step} loss {recent:.4f} seconds {time.monotonic() - started:.0f}")
    tail = losses[-max(1, schedule.steps // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, batches: list[Batch]) -> float:
    """Mean loss over batches the model was not trained on."""
    model.eval()
    return sum(loss_of(model, batch).item() for batch in batches) / len(batches)


def _rate(step: int, schedule: Schedule) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to a twentieth."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
