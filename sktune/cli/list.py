"""`sktune list`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from sktune.cli.arguments import Command
from sktune.terminal import say

_EXAMPLES = """examples:
  sktune list methods
  sktune list fields training
  sktune list fields --format markdown > docs/fields.md
"""


@click.command("list", cls=Command, epilog=_EXAMPLES)
@click.argument("what", type=click.Choice(["methods", "tasks", "recipes", "fields"]))
@click.argument("section", required=False)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "markdown"]),
    default="text",
    show_default=True,
    help="Of fields: a line each, or the tables of docs/fields.md.",
)
def command(what: str, section: str | None, kind: str) -> int:
    """Show the methods, tasks, recipes or fields there are.

    SECTION limits `fields` to those of a section, or of a method: `training`, `method.lora`.
    """
    if what != "fields" and (section is not None or kind != "text"):
        raise click.UsageError("SECTION and --format belong to `sktune list fields`", click.get_current_context())
    if kind == "markdown":
        from sktune.cli.fields import as_markdown

        say(as_markdown(section), end="")
        return 0
    lines = {"methods": _methods, "tasks": _tasks, "recipes": _recipes}[what]() if what != "fields" else None
    if lines is None:
        from sktune.cli.fields import as_lines

        lines = as_lines(section)
    for line in lines:
        say(line)
    return 0


def _methods() -> Iterator[str]:
    from sktune.methods import METHODS

    for name in METHODS:
        yield f"{name:<20} {(METHODS.config(name).__doc__ or '').splitlines()[0]}"


def _tasks() -> Iterator[str]:
    from sktune.recipe.keys import field_info, variants

    named = variants("task")
    if "" not in named:
        for name, config in named.items():
            yield f"{name:<26} {(config.__doc__ or '').splitlines()[0]}"
        return
    from typing import get_args

    info = field_info("task", "name")
    assert info is not None
    yield from get_args(info.annotation)


def _recipes() -> Iterator[str]:
    shipped = Path(__file__).resolve().parents[2] / "recipes"
    if not shipped.is_dir():  # installed as a wheel
        import sysconfig

        shipped = Path(sysconfig.get_path("data")) / "share" / "sktune" / "recipes"
    for path in sorted(shipped.rglob("*.yaml")):
        if "parts" not in path.parts:
            first = path.read_text(encoding="utf-8").splitlines()[0]
            yield f"{path.relative_to(shipped)!s:<44} {first.removeprefix('#').strip() if first[:1] == '#' else ''}"
