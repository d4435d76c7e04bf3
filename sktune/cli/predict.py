"""`sktune predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sktune.cli.arguments import OverridingCommand, with_logging, with_output
from sktune.errors import UserError
from sktune.process import guarded, join_ranks
from sktune.terminal import say, say_json

_EXAMPLES = """examples:
  sktune predict runs/smollm2_film_reviews --text "One of the best films I have seen in years."
  sktune predict runs/sentiment --file sentences.txt
"""


@click.command("predict", cls=OverridingCommand, epilog=_EXAMPLES)
@with_output
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option("--text-pair", "pairs", multiple=True, help="The second text of a pair, one for each --text.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A text file, one text a line; every line is answered, blank ones too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with every detail.")
@with_logging
def command(
    output: Path,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> int:
    """Answer new texts with a trained adapter.

    OUTPUT is the output.dir of a finished run.
    """
    return guarded(_run, output, overrides, texts, list(pairs) or None, file, as_json)


def _run(
    output: Path,
    overrides: Sequence[str],
    given: Sequence[str],
    pairs: list[str] | None,
    file: Path | None,
    as_json: bool,
) -> None:
    # Bytes of the command line that are not UTF-8 come as lone surrogates, which no file and no terminal takes.
    texts = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in given]
    if file is not None:
        from sktune.data.text_files import read_lines

        try:
            lines = read_lines(file)
        except OSError as error:
            raise UserError(f"--file: {file} cannot be read: {error.strerror}") from error
        texts += lines[:-1] if lines[-1] == "" else lines  # the last newline ends a line, and begins none
    if not texts:
        raise UserError("--text: nothing to predict; give --text or --file")
    ranks = join_ranks(1800)
    from sktune.inference import predict

    for answer in predict(output, texts, pairs, ranks, overrides, blanks=file is not None):
        say_json(answer) if as_json else say(answer.line)
