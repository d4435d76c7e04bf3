"""`sktune validate`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sktune.cli.arguments import OverridingCommand, is_override
from sktune.process import guarded
from sktune.terminal import say

_EXAMPLES = """examples:
  sktune validate recipes/*.yaml
  sktune validate recipes/llama7b_conll.yaml training.learning_rate=1e-2
  sktune validate recipes/quickstart_miniature.yaml --data
"""


@click.command("validate", cls=OverridingCommand, epilog=_EXAMPLES)
@click.argument("arguments", nargs=-1, required=True, metavar="RECIPE... [SECTION.FIELD=VALUE]...")
@click.option("--data", is_flag=True, help="Open the files too: labels, lengths in tokens, what would be cut.")
def command(arguments: tuple[str, ...], data: bool) -> int:
    """Check recipes, without loading anything."""
    from sktune.recipe import validate_files

    overrides = [item for item in arguments if is_override(item)]
    recipes = [item for item in arguments if not is_override(item)]
    status = validate_files(recipes, overrides)
    return status or (guarded(_open_data, recipes, overrides) if data else 0)


def _open_data(recipes: Sequence[str], overrides: Sequence[str]) -> None:
    from sktune.embedded import check_fetched
    from sktune.process import prepare_process
    from sktune.recipe import load_recipe

    prepare_process()
    from sktune.cli.inspection import inspect_data

    for path in recipes:
        recipe = load_recipe(path, overrides)
        check_fetched(recipe.model.name_or_path, recipe.model.tokenizer, recipe.data.path)
        lines, _ = inspect_data(recipe)
        say("\n".join([f"{path}:", *(f"  {line}" for line in lines)]))
