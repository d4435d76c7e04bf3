"""`sktune validate`."""

from __future__ import annotations

import click

from sktune.cli.arguments import OverridingCommand, is_override

_EXAMPLES = """examples:
  sktune validate recipes/*.yaml
  sktune validate recipes/llama7b_conll.yaml training.learning_rate=1e-2
"""


@click.command("validate", cls=OverridingCommand, epilog=_EXAMPLES)
@click.argument("arguments", nargs=-1, required=True, metavar="RECIPE... [SECTION.FIELD=VALUE]...")
def command(arguments: tuple[str, ...]) -> int:
    """Check recipes, without loading anything."""
    from sktune.recipe import validate_files

    overrides = [item for item in arguments if is_override(item)]
    return validate_files([item for item in arguments if not is_override(item)], overrides)
