"""The command line: a file per command, imported when it is called."""

from sktune.cli.commands import main

__all__ = ["main"]
