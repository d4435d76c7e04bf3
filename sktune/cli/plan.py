"""`sktune plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sktune.cli.arguments import OverridingCommand, recipe_and_overrides, with_recipe
from sktune.errors import UserError
from sktune.imports import importing, only_models
from sktune.process import guarded, prepare_process
from sktune.terminal import make_console, say_json

if TYPE_CHECKING:
    from sktune.planning.changes import Advice

_EXAMPLES = """examples:
  sktune plan recipes/llama7b_conll.yaml --gpus 2 --gpu-memory 8GiB
  sktune plan recipes/llama7b_conll.yaml model.name_or_path=meta-llama/Llama-2-70b-hf --gpus 4 --gpu-memory 24GiB
  sktune plan recipes/mistral7b_sst2.yaml --gpu-memory 16GiB --sweep bits,ranks
  sktune plan recipes/llama7b_rte.yaml --gpus 8 --nodes 2 --json
"""

SMALLEST = 2**16
"""A bare `24` is 24 bytes, and not what was meant."""


@click.command("plan", cls=OverridingCommand, epilog=_EXAMPLES)
@with_recipe
@click.option("--gpus", type=int, help="GPUs of a node (default: those of this machine, at least 1).")
@click.option("--nodes", type=int, default=1, show_default=True, help="Machines.")
@click.option("--gpu-memory", help="Memory of a GPU, like 24GiB (default: that of this machine's, if any).")
@click.option("--json", "as_json", is_flag=True, help="Print everything, bytes as integers.")
@click.option("--sweep", metavar="AXES", help="A grid over some of bits,ranks,checkpointing,batch.")
def command(
    recipe: str | None,
    arguments: tuple[str, ...],
    gpus: int | None,
    nodes: int,
    gpu_memory: str | None,
    as_json: bool,
    sweep: str | None,
) -> int:
    """Tell the memory a run needs, without loading anything."""
    path, overrides = recipe_and_overrides(recipe, arguments)
    return guarded(_run, path, overrides, gpus, nodes, gpu_memory, as_json, sweep)


@only_models()
def _run(
    path: str,
    overrides: Sequence[str],
    given_gpus: int | None,
    nodes: int,
    gpu_memory: str | None,
    as_json: bool,
    axes_text: str | None,
) -> None:
    with importing():
        prepare_process(computes=False)
        import torch

        from sktune.planning.changes import advise, parse_axes, sweep
        from sktune.planning.planner import plan
        from sktune.planning.report import gibibytes, print_plan, print_sweep
        from sktune.recipe import load_recipe

    axes = parse_axes(axes_text) if axes_text is not None else None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus: int = max(found, 1) if given_gpus is None else given_gpus
    for name, value in (("--gpus", gpus), ("--nodes", nodes)):
        if value < 1:
            raise UserError(f"{name}: {value}; allowed: 1 or more")
    memory = torch.cuda.get_device_properties(0).total_memory if found else None
    if gpu_memory is not None:
        memory = parse_bytes(gpu_memory)
    recipe = load_recipe(path, overrides)
    ranks = gpus * nodes
    console = make_console(soft_wrap=True, emoji=False)
    if axes is not None:
        plans = sweep(recipe, axes, ranks=ranks, memory_bytes=memory)
        if as_json:
            say_json([one.as_json() for one in plans], indent=1)
        else:
            print_sweep(console, plans, axes)
        return
    planned = plan(recipe, ranks=ranks, memory_bytes=memory)
    advice: Advice | None = None
    if memory is not None and not planned.fits:
        advice = advise(recipe, ranks, memory, nodes)
    if as_json:
        say_json({**planned.as_json(), "advice": None if advice is None else advice_as_json(advice)}, indent=1)
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
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = TypeAdapter(ByteSize).validate_python(text.strip())
    except ValidationError:
        size = ByteSize(0)
    if size < SMALLEST:
        raise UserError(
            f"--gpu-memory: {text!r} is no amount of memory that a GPU has; write it like 24GiB, 80GB or 16000000000"
        )
    return int(size)
