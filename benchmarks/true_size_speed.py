"""Tokens a second of SK-Prefix, SK-Prompt and LoRA, and of peft's methods in transformers' Trainer, on one device.

    python benchmarks/true_size_speed.py job.json

Written for a GPU; on a CPU it runs with a tiny model only to try the script. The contestants see the same rows, all of
one length, without gradient checkpointing. sktune: the recipe with another method, `prepare` and `build_engine`.
Stock: `AutoModelForTokenClassification` with bitsandbytes, peft, and `transformers.Trainer` in bf16 autocast, the head
not quantized. The first steps of each are not timed. What is measured goes beside the job, as `job.result.json`.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import peft
import torch
import transformers
from stock_quantization import quantization_config
from torch.nn.functional import pad
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import AutoModelForTokenClassification, Trainer, TrainerCallback, TrainingArguments
from true_size_model import TAGS

from sktune.distributed.ranks import Ranks
from sktune.recipe import Recipe, load_recipe
from sktune.training.setup import build_engine, prepare

WARMUP, TIMED, PROFILED = 3, 10, 2
RANK, TARGETS = 8, ["q_proj", "v_proj"]
METHODS = {
    "sk_prefix": [],  # the recipe's own
    "sk_prompt": ["method={name: sk_prompt, rank: 32, text: 'Find the persons, organizations and locations:'}"],
    "lora": [f"method={{name: lora, rank: {RANK}, alpha: {2 * RANK}, target_modules: [{', '.join(TARGETS)}]}}"],
}
"""Overrides of the recipe."""
HEAD = "score"
"""transformers' name of the classifier, which trains."""

Batch = dict[str, torch.Tensor]


def stock_method(name: str, positions: int) -> peft.PeftConfig:
    """What peft has that does the nearest thing: with as many positions, or the same LoRA."""
    task = peft.TaskType.TOKEN_CLS
    if name == "sk_prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=positions)
    if name == "sk_prompt":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=positions)
    return peft.LoraConfig(task_type=task, r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)


def random_batch(rows: int, tokens: int, vocabulary: int, device: torch.device) -> Batch:
    """Rows of random ids, every position labelled."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(10, vocabulary, (rows, tokens), generator=generator)
    labels = torch.randint(len(TAGS), (rows, tokens), generator=generator)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def observe(step: Callable[[], None], tokens: int, device: torch.device) -> dict[str, Any]:
    """Times steps, then profiles some more."""
    for _ in range(WARMUP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(TIMED):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED):
            step()
        synchronize(device)
    return summary(seconds, tokens) | {"allocated_peak_bytes": peak, "time_goes_to": costs(profiled, device)}


def summary(seconds: list[float], tokens: int) -> dict[str, Any]:
    """Median seconds of a step, and tokens a second."""
    median = statistics.median(seconds)
    return {"seconds_a_step": median, "tokens_per_second": tokens / median}


def costs(profiled: profile, device: torch.device) -> dict[str, float]:
    """Shares of the twelve operations or kernels that take most of the device's time."""
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = {event.key: float(getattr(event, own)) for event in profiled.key_averages()}
    total = sum(found.values()) or 1.0
    ranked = sorted(found.items(), key=lambda item: -item[1])[:12]
    return {name: time_taken / total for name, time_taken in ranked}


def matrix_limit(device: torch.device) -> float:
    """Multiplications and additions a second of the best of some large bf16 products."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def ours(recipe: Recipe, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Sktune's steps on one process."""
    ranks = Ranks(0, 0, 1, device, launched=False)
    assembly = prepare(recipe, ranks, labels=TAGS, read_data=False)
    engine, _ = build_engine(assembly, ranks)
    engine.set_training(True)
    engine.set_rate(1.0)

    def step() -> None:
        output = engine(**batch, num_items_in_batch=batch["labels"].numel())
        assert output.loss is not None
        engine.backward(output.loss)
        engine.step()

    trainable, _ = assembly.model.parameter_counts()
    more = {"trainable_parameters": trainable, "positions": assembly.model.method.positions}
    return observe(step, batch["input_ids"].numel(), device) | more


class Rows(Dataset[Batch]):
    """The batch's rows, over and over."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch = {name: tensor.cpu() for name, tensor in batch.items()}
        self.rows = len(batch["input_ids"])
        self.steps = steps

    def __len__(self) -> int:
        return self.rows * self.steps

    def __getitem__(self, index: int) -> Batch:
        return {name: tensor[index % self.rows] for name, tensor in self.batch.items()}


class Clock(TrainerCallback):
    """Seconds of each step of a Trainer."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self.device = device

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        if len(self.seconds) == WARMUP and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.started)


def stock(recipe: Recipe, method: peft.PeftConfig, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Peft's steps in transformers' Trainer."""
    network = AutoModelForTokenClassification.from_pretrained(
        recipe.model.name_or_path,
        num_labels=len(TAGS),
        dtype=getattr(torch, recipe.model.dtype),
        quantization_config=quantization_config(recipe, skip=[HEAD]),
    )
    model = peft.get_peft_model(network, method)
    if isinstance(method, peft.PromptTuningConfig):
        # peft puts the prompt before a token classifier's inputs, and leaves the labels as they are.
        batch = {**batch, "labels": pad(batch["labels"], (method.num_virtual_tokens, 0), value=-100)}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batch["input_ids"]),
            max_steps=WARMUP + TIMED,
            learning_rate=1e-4,
            bf16=recipe.model.dtype == "bfloat16",
            use_cpu=device.type == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
        )
        clock = Clock(device)
        rows = Rows(batch, WARMUP + TIMED)
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
    found = summary(clock.seconds[WARMUP:], batch["input_ids"].numel())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return found | {"allocated_peak_bytes": peak, "trainable_parameters": model.get_nb_trainable_parameters()[0]}


def attempt(measured: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What was measured, or why not: one contestant that fails leaves the others their numbers."""
    try:
        return measured()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = torch.device(job["device"])
    limit = matrix_limit(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "matrix_limit_flops": limit, "contestants": {}}
    for contestant, overrides in METHODS.items():
        recipe = load_recipe(job["recipe"], [*job["overrides"], *overrides])
        batch = random_batch(job["rows"], job["tokens"], job["vocabulary"], device)
        found = {"sktune": attempt(partial(ours, recipe, batch, device), device)}
        method = stock_method(contestant, found["sktune"].get("positions") or 20)
        found["stock"] = attempt(partial(stock, recipe, method, batch, device), device)
        for numbers in found.values():
            if "seconds_a_step" in numbers:
                # Forward, and backward to the inputs: frozen matrices have no gradient of their own.
                flops = 4 * job["matrix_parameters"] * batch["input_ids"].numel()
                numbers["share_of_matrix_limit"] = flops / numbers["seconds_a_step"] / limit
        result["contestants"][contestant] = found
        path.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")
    if device.type == "cpu":
        result["note"] = "not run on a GPU"
    path.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
