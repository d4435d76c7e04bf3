"""`sktune plan`."""

from __future__ import annotations

import argparse
import json

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console

from sktune.errors import UserError
from sktune.planning.changes import Advice, advise, parse_axes, sweep
from sktune.planning.planner import plan
from sktune.planning.report import gibibytes, print_plan, print_sweep
from sktune.recipe import load_recipe

SMALLEST = 2**16
"""A bare `24` is 24 bytes, and not what was meant."""


def run_plan(options: argparse.Namespace) -> None:
    """Plans, and prints.

    Raises:
        UserError: for whatever the user can correct.
    """
    axes = parse_axes(options.sweep) if options.sweep is not None else None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus: int = max(found, 1) if options.gpus is None else options.gpus
    for name, value in (("--gpus", gpus), ("--nodes", options.nodes)):
        if value < 1:
            raise UserError(f"{name}: {value}; allowed: 1 or more")
    memory = torch.cuda.get_device_properties(0).total_memory if found else None
    if options.gpu_memory is not None:
        memory = parse_bytes(options.gpu_memory)
    recipe = load_recipe(options.recipe, options.overrides)
    ranks = gpus * options.nodes
    console = Console(soft_wrap=True, emoji=False)
    if axes is not None:
        plans = sweep(recipe, axes, ranks=ranks, memory_bytes=memory)
        if options.json:
            print(json.dumps([one.as_json() for one in plans], indent=1))
        else:
            print_sweep(console, plans, axes)
        return
    planned = plan(recipe, ranks=ranks, memory_bytes=memory)
    advice: Advice | None = None
    if memory is not None and not planned.fits:
        advice = advise(recipe, ranks, memory, options.nodes)
    if options.json:
        print(json.dumps({**planned.as_json(), "advice": None if advice is None else advice_as_json(advice)}, indent=1))
    else:
        after = f" ({gibibytes(advice.plan.peak)})" if advice is not None and advice.plan.fits else ""
        print_plan(console, planned, None if advice is None else advice.text + after)


def advice_as_json(advice: Advice) -> dict[str, object]:
    """The change in words, what to type, and the peak after it."""
    return {
        "fits": advice.plan.fits,
        "text": advice.text,
        "overrides": [override for change in advice.changes for override in change.overrides],
        "peak": advice.plan.peak,
    }


def parse_bytes(text: str) -> int:
    """Bytes of "24GiB", "24G", "80 GB" or a plain number.

    Raises:
        UserError: for anything else.
    """
    try:
        size = TypeAdapter(ByteSize).validate_python(text.strip())
    except ValidationError:
        size = ByteSize(0)
    if size < SMALLEST:
        raise UserError(
            f"--gpu-memory: {text!r} is no amount of memory that a GPU has; write it like 24GiB, 80GB or 16000000000"
        )
    return int(size)
