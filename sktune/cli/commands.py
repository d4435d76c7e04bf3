"""`sktune` and its commands by name.

`train.py`, `evaluate.py` and `compare.py` in `launchers/` are the same commands for `deepspeed` and `torchrun`.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import shell_complete

from sktune import __version__
from sktune.terminal import complain

COMMANDS = (
    "init", "list", "validate", "plan", "train", "evaluate", "predict", "serve", "export", "compare", "report", "fetch",
)  # fmt: skip
"""Each is the click command `command` of the module `sktune.cli.<name>`; the order is that of the help."""

KNOWN_ELSEWHERE = {
    "fit": "train", "finetune": "train", "run": "train", "eval": "evaluate", "test": "evaluate", "score": "evaluate",
    "infer": "predict", "inference": "predict", "generate": "predict", "check": "validate", "lint": "validate",
    "download": "fetch", "pull": "fetch", "ls": "list", "memory": "plan",
    "deploy": "serve", "server": "serve",
    "convert": "export", "save": "export", "sweep": "compare", "benchmark": "compare",
}  # fmt: skip
"""What other tools call the same command."""

_COMPLETION = "_SKTUNE_COMPLETE"


class Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"sktune.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            meant = KNOWN_ELSEWHERE.get(name) or (near[0] if near else "")
            cure = f"did you mean {meant}?" if meant else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"{name!r} is no command of sktune; {cure}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="sktune %(version)s")
@click.option("--local_rank", "--local-rank", hidden=True, expose_value=False)  # deepspeed passes it to a script
def sktune() -> None:
    """Fine-tunes frozen, quantized, sharded language models as a recipe says."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `sktune`.

    Args:
        arguments: of the command line; None takes those of this process.

    Returns:
        The exit status: 0, 1 where something checked or compared is not good, 2 for a user's mistake, 128 and the
        signal's number for a command that was stopped.

    Raises:
        SystemExit: behind `--help`, `--version` and shell completion.
    """
    if instruction := os.environ.get(_COMPLETION):
        raise SystemExit(shell_complete(sktune, {}, "sktune", _COMPLETION, instruction))
    try:
        with sktune.make_context("sktune", list(sys.argv[1:] if arguments is None else arguments)) as context:
            status: int | None = sktune.invoke(context)
            return status or 0
    except BrokenPipeError:  # who read the output, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        return help_text.exit_code
    except click.UsageError as mistake:
        help_of = f"; see {mistake.ctx.command_path} --help" if mistake.ctx is not None else ""
        complain(f"error: {mistake.format_message().rstrip('.')}{help_of}")
        return mistake.exit_code
