"""`sktune serve`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sktune.cli.arguments import OverridingCommand, with_logging
from sktune.errors import UserError
from sktune.process import guarded, join_ranks

TOKEN_VARIABLE = "SKTUNE_SERVE_TOKEN"

_EXAMPLES = f"""examples:
  sktune serve --adapter films=runs/smollm2_film_reviews
  sktune serve --adapter films=runs/films --adapter ner=runs/ner --port 0 model.dtype=bfloat16
  {TOKEN_VARIABLE}=... sktune serve --adapter films=adapters/films --host 0.0.0.0 --adapters-folder adapters
  curl -s localhost:8000/predict --json '{{"adapter": "films", "texts": ["One of the best films."]}}'
"""


@click.command("serve", cls=OverridingCommand, epilog=_EXAMPLES)
@click.option(
    "--adapter", "adapters", multiple=True, required=True, metavar="NAME=FOLDER",
    help="An adapter: what requests call it, and the folder of its run; may be given many times.",
)  # fmt: skip
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Rows read in one pass.")
@click.option(
    "--queue", type=click.IntRange(1), default=512, show_default=True,
    help="Texts that may wait; beyond it a request is answered with status 503.",
)  # fmt: skip
@click.option("--max-texts", type=click.IntRange(1), default=128, show_default=True, help="Texts of a request.")
@click.option(
    "--max-characters", type=click.IntRange(1), default=20_000, show_default=True, help="Characters of a text."
)
@click.option("--max-body", type=click.IntRange(1), default=2**20, show_default=True, help="Bytes of a request.")
@click.option(
    "--grace", type=click.IntRange(1), default=30, show_default=True,
    help="Seconds that requests under way are given at the end.",
)  # fmt: skip
@click.option(
    "--token-file", type=click.Path(path_type=Path),
    help=f"A file with the token that requests have to bring (Authorization: Bearer ...); or {TOKEN_VARIABLE} is set.",
)  # fmt: skip
@click.option(
    "--adapters-folder", type=click.Path(path_type=Path),
    help="Let requests with the token add and remove adapters, from this folder alone.",
)  # fmt: skip
@with_logging
def command(adapters: Sequence[str], overrides: Sequence[str], **options: Any) -> int:
    """Answer over HTTP with many adapters of one frozen model.

    Each request says which adapter answers; requests to several of them are read together. Overrides change the recipe
    of every adapter.
    """
    return guarded(_run, adapters, list(overrides), options)


def _run(adapters: Sequence[str], overrides: Sequence[str], given: dict[str, Any]) -> None:
    folders = _folders(adapters)
    token = _token(given.pop("token_file"))
    allowed = given["adapters_folder"]
    if allowed is not None and not allowed.is_dir():
        raise UserError(f"--adapters-folder: there is no folder {allowed}")
    if allowed is not None and token is None:
        raise UserError(
            f"--adapters-folder: adapters are added and removed with a token only; set {TOKEN_VARIABLE}, or give "
            "--token-file"
        )
    if given["max_texts"] > given["queue"]:
        raise UserError(f"--max-texts: {given['max_texts']} could never wait in a --queue of {given['queue']}")
    ranks = join_ranks(1800)
    if ranks.world_size > 1:
        raise UserError("sktune serve is one process; start it without a launcher")
    try:
        from sktune.serving.app import Limits
        from sktune.serving.server import Options, serve
    except ImportError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise
        raise UserError(f"sktune serve needs the package {error.name}: pip install 'sktune[serve]'") from error
    limits = Limits(texts=given.pop("max_texts"), characters=given.pop("max_characters"))
    serve(folders, overrides, ranks, Options(limits=limits, token=token, most_bytes=given.pop("max_body"), **given))


def _folders(adapters: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for adapter in adapters:
        name, equals, folder = adapter.partition("=")
        if not (equals and name and folder):
            raise UserError(f"--adapter: {adapter!r} must be NAME=FOLDER, for example films=runs/films")
        if name in folders:
            raise UserError(f"--adapter: {name} is given twice; choose another name for {folder}")
        folders[name] = Path(folder)
    return folders


def _token(file: Path | None) -> str | None:
    """The token, of a file or the environment; never logged, and never part of a message."""
    given = os.environ.pop(TOKEN_VARIABLE, None)
    if file is None and given is None:
        return None
    if file is not None and given is not None:
        raise UserError(f"--token-file and {TOKEN_VARIABLE} both give a token; give one of them")
    if file is not None:
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--token-file: {file} cannot be read as text") from None
    token = (given or "").strip()
    if not (token.isascii() and token.isprintable() and len(token) >= 8) or " " in token:
        raise UserError("the token must have at least 8 letters, digits or signs of ASCII, and no blanks")
    return token
