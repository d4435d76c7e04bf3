"""What the data of a recipe holds: examples, labels, lengths in tokens, what is cut; no weights are loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from rich import filesize

from sktune.backbone import load_tokenizer
from sktune.backbone.architecture import is_encoder
from sktune.backbone.skeleton import read_config
from sktune.data import EncodedSplit, Example, GlobalBatches, RawSplits, load_splits
from sktune.data.state_codes import kept_form
from sktune.recipe import Recipe
from sktune.tasks.task import Task, build_task
from sktune.training.setup import coder_of, task_of_method
from sktune.training.steps import global_batch_size, total_steps

_LABELS_SHOWN = 20


def inspect_data(recipe: Recipe) -> tuple[list[str], list[int]]:
    """Reads and tokenizes every split of a recipe as training would.

    Returns:
        Lines for the user, and the number of tokens of each training row.

    Raises:
        UserError: for whatever the user can correct.
    """
    task = build_task(recipe.task)
    raw = load_splits(recipe.data, task)
    lines = list(raw.report)
    if raw.labels is not None:
        shown = ", ".join(raw.labels[:_LABELS_SHOWN])
        more = f" and {len(raw.labels) - _LABELS_SHOWN} more" if len(raw.labels) > _LABELS_SHOWN else ""
        lines.append(f"labels ({len(raw.labels)}): {shown}{more}")
    encode = _encoder(recipe, raw, task)
    lengths: list[int] = []
    tokens = 0
    for split, examples in (("train", raw.train), ("validation", raw.validation), ("test", raw.test)):
        if examples is None:
            lines.append(f"{split}: none")
            continue
        if counted := _counts(examples):
            lines.append(f"{split}: {counted}")
        encoded = encode(examples, split)
        lines += [f"{split}: {_spread(encoded.lengths)}", *encoded.report]
        tokens += sum(encoded.lengths)
        if split == "train":
            lengths = encoded.lengths
    config, dtype = read_config(recipe.model), getattr(torch, recipe.model.dtype)
    if recipe.training.frozen_states != "off" and recipe.method.frozen_blocks(config.num_hidden_layers):
        width, kept = kept_form(config.hidden_size, dtype, recipe.training.frozen_states_in_8bit)
        lines.append(
            f"training.frozen_states ({recipe.training.frozen_states}): {tokens:,} tokens x {width} x "
            f"{kept.itemsize} bytes, {filesize.decimal(tokens * width * kept.itemsize)}, where they are kept"
        )
    return lines, lengths


def steps_of(recipe: Recipe, lengths: Sequence[int], ranks: int) -> str:
    """How many optimizer steps a run takes, and of how many examples each.

    Args:
        recipe: of the run.
        lengths: tokens of each training row.
        ranks: processes of the run.
    """
    if recipe.method.scores_only:
        return "steps: 0, this method trains nothing"
    size = global_batch_size(recipe.training, ranks)
    epoch = GlobalBatches(lengths, size, recipe.training.seed, recipe.data.group_by_length).steps_per_epoch
    steps = total_steps(recipe.training, epoch)
    return f"steps: {steps:,} of {size} examples, {steps / epoch:.2f} epochs of {epoch:,} steps"


def _encoder(recipe: Recipe, raw: RawSplits, task: Task) -> Callable[[Sequence[Example], str], EncodedSplit]:
    tokenizer = load_tokenizer(recipe.model)
    encoder = is_encoder(read_config(recipe.model))
    task = task_of_method(recipe, task, tokenizer, raw.labels, raw.train)
    coder = coder_of(recipe, tokenizer, encoder)
    return lambda examples, split: task.encode(examples, coder, raw.labels, split)


def _counts(examples: Sequence[Example]) -> str:
    """How often each label occurs; of tagged words, how many entities of each type; of numbers, their range."""
    references = [example.reference for example in examples]
    numbers = [value for value in references if isinstance(value, float)]
    if numbers:
        return f"numbers from {min(numbers):g} to {max(numbers):g}, mean {sum(numbers) / len(numbers):.4g}"
    names: Counter[str] = Counter()
    for reference in references:
        if isinstance(reference, tuple):
            names.update(tag[2:] for tag in reference if tag.startswith("B-"))
        else:
            names[str(reference)] += 1
    if len(names) > max(_LABELS_SHOWN, len(examples) // 2):  # free texts
        return ""
    return ", ".join(f"{name} {count:,}" for name, count in names.most_common(_LABELS_SHOWN))


def _spread(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    median, most = ordered[len(ordered) // 2], ordered[math.ceil(0.95 * len(ordered)) - 1]
    return f"{ordered[0]} to {ordered[-1]} tokens, half up to {median}, 95% up to {most}; {sum(ordered):,} in all"
