"""What commands have in common: a recipe, overrides anywhere, what a wrong option was meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

_NUMBER = re.compile(r"-[\d.]")


class Command(click.Command):
    """A command whose examples are printed as they are written, and which says what a wrong option was meant to be."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(self._unknown(error.option_name, ctx), ctx) from None

    def _unknown(self, option: str, ctx: click.Context) -> str:
        shown = [
            name
            for parameter in self.get_params(ctx)
            if not getattr(parameter, "hidden", False)
            for name in parameter.opts
            if name.startswith("--")
        ]
        near = difflib.get_close_matches(option, shown, n=1, cutoff=0.7)
        return f"{option} is no option of this command; " + (
            f"did you mean {near[0]}?" if near else f"there are: {', '.join(shown)}"
        )

    def get_short_help_str(self, limit: int = 45) -> str:
        return (self.help or "").partition(".")[0] + "."

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write("\n" + self.epilog)


class OverridingCommand(Command):
    """A command that also takes overrides written as options: `--training.max_steps=20`, `--training.max_steps 20`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._as_overrides(args, ctx))

    def _unknown(self, option: str, ctx: click.Context) -> str:
        from sktune.recipe.keys import suggest

        message = super()._unknown(option, ctx)
        field = suggest(None, option.lstrip("-").replace("-", "_"))
        if "did you mean" in message or "." not in field:
            return message
        return f"{option} is no option of this command; did you mean the field {field}? Write {field}=VALUE"

    def _as_overrides(self, args: Sequence[str], ctx: click.Context) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        result: list[str] = []
        waiting = iter(args)
        for argument in waiting:
            if argument == "--":
                return [*result, argument, *waiting]
            name, equals, _ = argument.partition("=")
            if name in own or not _is_field(name):
                result.append(argument)
                continue
            field = name.removeprefix("--")
            if equals:
                result.append(argument.removeprefix("--"))
                continue
            value = next(waiting, None)
            if value is None or (value.startswith("-") and not _NUMBER.match(value)):
                raise click.UsageError(f"{name} needs a value: {field}=VALUE or {name} VALUE", ctx)
            result.append(f"{field}={value}")
        return result


def _is_field(name: str) -> bool:
    """Whether an option is written like a field of the recipe (`--training.seed`), or a whole section (`--method`)."""
    if not name.startswith("--"):
        return False
    if "." in name:
        return True
    from sktune.recipe.keys import SECTIONS

    return name[2:] in SECTIONS


def is_override(argument: str) -> bool:
    """Whether it is `section.field=value`, and no file whose name has an equals sign."""
    return "=" in argument and not Path(argument).is_file()


def recipe_and_overrides(option: str | None, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe, given by `--recipe` or as the first argument that is no override, and the overrides in their order.

    Raises:
        click.UsageError: where no recipe is given.
    """
    rest = list(arguments)
    if option is None:
        place = next((number for number, argument in enumerate(rest) if not is_override(argument)), None)
        if place is None:
            raise click.UsageError(
                "no recipe is given; name a file, for example recipes/quickstart_miniature.yaml",
                click.get_current_context(),
            )
        option = rest.pop(place)
    return option, rest


def with_recipe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what names a recipe and changes it: `arguments`, `recipe`."""
    function = click.argument("arguments", nargs=-1, metavar="RECIPE [SECTION.FIELD=VALUE]...")(function)
    function = click.option("--recipe", metavar="FILE", help="The recipe, another way to name it.")(function)
    return _with_local_rank(function)


def with_output(function: Callable[..., Any], before: str = "") -> Callable[..., Any]:
    """Adds what names a finished run and changes its recipe: `output`, `overrides`, what may stand `before` these."""
    function = click.argument("overrides", nargs=-1, metavar=f"{before}[SECTION.FIELD=VALUE]...")(function)
    function = click.argument("output", type=click.Path(path_type=Path))(function)
    return _with_local_rank(function)


def _with_local_rank(function: Callable[..., Any]) -> Callable[..., Any]:
    # deepspeed passes it to a script.
    return click.option("--local_rank", "--local-rank", hidden=True, expose_value=False)(function)


def with_logging(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--quiet` and `--verbose`, which apply to this command alone."""

    def choose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        from sktune.process import choose_log

        if value:
            other = "verbose" if parameter.name == "quiet" else "quiet"
            if ctx.meta.get(other):
                raise click.UsageError("--quiet and --verbose contradict each other; give one of them", ctx)
            ctx.meta[str(parameter.name)] = True
            choose_log("quiet" if parameter.name == "quiet" else "verbose")
            # Of the root: a context whose arguments are refused is never closed.
            ctx.find_root().call_on_close(lambda: choose_log(None))

    for name, text in (
        ("verbose", "Also log what the libraries below say, each line with its time and source."),
        ("quiet", "Log warnings and errors only, and no progress; results are printed all the same."),
    ):
        function = click.option(f"--{name}", is_flag=True, expose_value=False, callback=choose, help=text)(function)
    return function
