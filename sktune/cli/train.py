"""`sktune train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from sktune.cli.arguments import OverridingCommand, recipe_and_overrides, with_logging, with_recipe
from sktune.process import guarded, join_ranks, leave
from sktune.training.stopping import advising

_EXAMPLES = """examples:
  sktune train recipes/smollm2_film_reviews.yaml training.max_steps=20
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml --resume
"""


@click.command("train", cls=OverridingCommand, epilog=_EXAMPLES)
@with_recipe
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in output.dir.")
@with_logging
def command(recipe: str | None, arguments: tuple[str, ...], resume: bool) -> int:
    """Train as a recipe says.

    In this one process, or with the others that deepspeed or torchrun started.
    """
    path, overrides = recipe_and_overrides(recipe, arguments)
    return guarded(run_train, path, [*overrides, *(["training.resume=auto"] if resume else [])])


def run_train(recipe: str, overrides: Sequence[str]) -> None:
    """Trains on this rank, and prints the summary on the first.

    Raises:
        ValueError: for whatever the user can correct.
    """
    from sktune.embedded import check_fetched
    from sktune.recipe import load_recipe_document

    loaded = load_recipe_document(recipe, overrides)
    check_fetched(loaded.recipe.model.name_or_path, loaded.recipe.model.tokenizer, loaded.recipe.data.path)
    with advising(f"go on with the same command and --resume (output.dir: {loaded.recipe.output.dir})"):
        ranks = join_ranks(loaded.recipe.distributed.timeout_seconds)
        from sktune.training.run import train

        summary = train(loaded, ranks)
    leave()
    if ranks.is_main:
        _print_summary(summary, loaded.recipe.output.dir, loaded.recipe.tracking)


def _print_summary(summary: dict[str, Any], output_dir: str, tracking: Any) -> None:
    for name in sorted(summary):
        value = summary[name]
        if "/rank" not in name and value is not None:
            shown = f"{value:,.4f}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
            print(f"  {name:<48} {shown:>18}")
    print(f"adapter: {output_dir}/adapter")
    if tracking.enabled:
        from sktune.tracking.uri import hide_password

        uri = hide_password(tracking.tracking_uri)
        print(f"tracked: {uri}" + (f"  (mlflow ui --backend-store-uri {uri})" if uri.startswith("sqlite") else ""))
