"""`sktune evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sktune.cli.arguments import OverridingCommand, with_logging, with_output
from sktune.process import guarded, join_ranks, leave
from sktune.terminal import say_json

_EXAMPLES = """examples:
  sktune evaluate runs/smollm2_film_reviews
  sktune evaluate runs/smollm2_film_reviews --split validation training.per_device_eval_batch_size=64
  deepspeed --num_gpus 2 launchers/evaluate.py runs/llama7b_conll
"""


@click.command("evaluate", cls=OverridingCommand, epilog=_EXAMPLES)
@with_output
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@with_logging
def command(output: Path, overrides: tuple[str, ...], split: str) -> int:
    """Score a trained adapter on a split of its data.

    OUTPUT is the output.dir of a finished run.
    """
    return guarded(_run, output, split, overrides)


def _run(output: Path, split: str, overrides: Sequence[str]) -> None:
    from sktune.inference import adapter_folder, evaluate_run
    from sktune.recipe import load_recipe

    timeout = load_recipe(adapter_folder(output) / "recipe.yaml", overrides).distributed.timeout_seconds
    ranks = join_ranks(timeout)
    result = evaluate_run(output, split, ranks, overrides)
    leave()
    if ranks.is_main:
        say_json(result, indent=1)
