"""`sktune train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from sktune.cli.arguments import OverridingCommand, recipe_and_overrides, with_logging, with_recipe
from sktune.imports import importing
from sktune.process import guarded, join_ranks, leave, prepare_process
from sktune.terminal import make_console, say
from sktune.training.stopping import advising

_EXAMPLES = """examples:
  sktune train recipes/smollm2_film_reviews.yaml training.max_steps=20
  sktune train recipes/smollm2_film_reviews.yaml --dry-run
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml --resume
"""


@click.command("train", cls=OverridingCommand, epilog=_EXAMPLES)
@with_recipe
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in output.dir.")
@click.option("--dry-run", is_flag=True, help="Read the data, count steps and plan the memory; load no weights.")
@with_logging
def command(recipe: str | None, arguments: tuple[str, ...], resume: bool, dry_run: bool) -> int:
    """Train as a recipe says.

    In this one process, or with the others that deepspeed or torchrun started.
    """
    path, overrides = recipe_and_overrides(recipe, arguments)
    if dry_run:
        if resume:
            raise click.UsageError("--dry-run trains nothing, so --resume does nothing", click.get_current_context())
        return guarded(_rehearse, path, overrides)
    return guarded(run_train, path, [*overrides, *(["training.resume=auto"] if resume else [])])


def run_train(recipe: str, overrides: Sequence[str]) -> None:
    """Trains on this rank, and prints the summary on the first.

    Raises:
        UserError: for whatever the user can correct.
    """
    from sktune.embedded import check_fetched
    from sktune.recipe import load_recipe_document

    loaded = load_recipe_document(recipe, overrides)
    check_fetched(loaded.recipe.model.name_or_path, loaded.recipe.model.tokenizer, loaded.recipe.data.path)
    with advising(f"go on with the same command and --resume (output.dir: {loaded.recipe.output.dir})"):
        with importing():
            ranks = join_ranks(loaded.recipe.distributed.timeout_seconds)
            from sktune.training.run import train

        summary = train(loaded, ranks)
    leave()
    if ranks.is_main:
        _print_summary(summary, loaded.recipe.output.dir, loaded.recipe.tracking)


def _rehearse(recipe_file: str, overrides: Sequence[str]) -> None:
    """Prints what a run would read and need, in this one process; writes nothing."""
    from sktune.embedded import check_fetched
    from sktune.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides)
    check_fetched(recipe.model.name_or_path, recipe.model.tokenizer, recipe.data.path)
    prepare_process()
    from sktune.cli.inspection import inspect_data, steps_of
    from sktune.planning.planner import plan
    from sktune.planning.report import print_plan

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("RANK", "0") != "0":
        return
    lines, lengths = inspect_data(recipe)
    for line in [*lines, steps_of(recipe, lengths, ranks)]:
        say(line)
    print_plan(make_console(soft_wrap=True, emoji=False), plan(recipe, ranks=ranks), None)
    say("dry run: nothing was trained or written")


def _print_summary(summary: dict[str, Any], output_dir: str, tracking: Any) -> None:
    for name in sorted(summary):
        value = summary[name]
        if "/rank" not in name and value is not None:
            shown = f"{value:,.4f}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
            say(f"  {name:<48} {shown:>18}")
    say(f"adapter: {output_dir}/adapter")
    if tracking.enabled:
        from sktune.errors import hide_password

        uri = hide_password(tracking.tracking_uri)
        say(f"tracked: {uri}" + (f"  (mlflow ui --backend-store-uri {uri})" if uri.startswith("sqlite") else ""))
