"""`sktune predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sktune.cli.arguments import OverridingCommand, with_logging, with_output
from sktune.process import guarded, join_ranks

_EXAMPLES = """examples:
  sktune predict runs/smollm2_film_reviews --text "One of the best films I have seen in years."
  sktune predict runs/sentiment --file sentences.txt
"""


@click.command("predict", cls=OverridingCommand, epilog=_EXAMPLES)
@with_output
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option("--text-pair", "pairs", multiple=True, help="The second text of a pair, one for each --text.")
@click.option("--file", type=click.Path(path_type=Path), help="A text file, one text a line.")
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
    texts = list(given)
    if file is not None:
        try:
            texts += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise ValueError(f"--file: {file} cannot be read: {error.strerror}") from error
    if not texts:
        raise ValueError("--text: nothing to predict; give --text or --file")
    ranks = join_ranks(1800)
    from sktune.inference import predict

    for answer in predict(output, texts, pairs, ranks, overrides):
        print(json.dumps(answer, ensure_ascii=False) if as_json else _as_line(answer))


def _as_line(answer: dict[str, Any]) -> str:
    text = answer["text"]
    if "entities" in answer:
        found = ", ".join(f"{e['text']} [{e['type']}]" for e in answer["entities"]) or "no entities"
        return f"{text}\n  -> {found}"
    if "label" in answer:
        return f"{text}\n  -> {answer['label']} ({answer['probabilities'][answer['label']]:.3f})"
    return f"{text}\n  -> {answer.get('generated', answer.get('value'))}"
