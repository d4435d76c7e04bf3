"""`sktune predict`."""

from __future__ import annotations

import copy
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sktune.cli.arguments import OverridingCommand, is_override, with_logging, with_output
from sktune.errors import UserError
from sktune.files import ADAPTER_WEIGHTS
from sktune.process import guarded, leave, prepare_process
from sktune.terminal import complain, say, say_json

if TYPE_CHECKING:
    from sktune.data.questions import Question
    from sktune.recipe import Recipe

logger = logging.getLogger("sktune")

_EXAMPLES = """examples:
  sktune predict runs/smollm2_film_reviews --text "One of the best films I have seen in years."
  sktune predict runs/sentiment sentences.txt
  sktune predict runs/sentiment reviews.csv data.text_column=review --output answers.jsonl
  sktune predict runs/sentiment reviews.csv --output answers.jsonl --resume --batch-size 64 --top-k 3
  sktune predict runs/instruct --text "Write a haiku." --temperature 0.8 --top-p 0.9 --max-new-tokens 60
  deepspeed --num_gpus 2 launchers/predict.py runs/llama7b_conll news.conll --output tagged.conll
  sktune predict runs/ner news.conll --output tagged.conll --on-error skip
"""


@click.command("predict", cls=OverridingCommand, epilog=_EXAMPLES)
@partial(with_output, before="[FILE] ")
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option("--text-pair", "pairs", multiple=True, help="The second text of a pair, one for each --text.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A file of texts: lines of plain text (every line is answered, blank ones too), JSON lines, CSV, TSV, Parquet "
    "or CoNLL columns, with the columns of the recipe. May also stand behind OUTPUT.",
)
@click.option(
    "--format",
    type=click.Choice(("auto", "text", "conll", "jsonl", "csv", "tsv", "parquet")),
    default="auto",
    show_default=True,
    help="Of the file; auto: by its ending, and plain text where that says nothing.",
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What a line that cannot be read does: stop before anything is answered, or be named and left out.",
)
@click.option(
    "--output",
    "answers_file",
    type=click.Path(path_type=Path),
    help="Write the answers there instead: .jsonl, .csv, .tsv, or .conll for tagged words.",
)
@click.option("--resume", is_flag=True, help="Go on with an --output that a stopped command has begun.")
@click.option("--batch-size", type=int, help="Texts that are read at once (default: of the recipe's evaluation).")
@click.option("--top-k", type=int, help="Show only so many of a text's probabilities, the highest first.")
@click.option("--max-new-tokens", type=int, help="The most tokens of a text that is written (default: the recipe's).")
@click.option("--temperature", type=float, default=0.0, help="Draw tokens; 0, the default, writes the likeliest.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest tokens of this probability together.")
@click.option("--stop", "stops", multiple=True, help="End a written text before this; may be given several times.")
@click.option("--seed", type=int, default=0, help="Of what is drawn.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Show what is written to each text while it is written (default: where --text is answered on a terminal).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with every detail.")
@with_logging
def command(
    output: Path,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    file: Path | None,
    format: str,
    on_error: str,
    answers_file: Path | None,
    resume: bool,
    batch_size: int | None,
    top_k: int | None,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float,
    stops: tuple[str, ...],
    seed: int,
    stream: bool | None,
    as_json: bool,
) -> int:
    """Answer new texts with a trained adapter.

    OUTPUT is the output.dir of a finished run.
    """
    files = [Path(item) for item in overrides if not is_override(item)] + ([] if file is None else [file])
    if len(files) > 1:
        raise click.UsageError(f"one file at a time, not {', '.join(map(str, files))}", click.get_current_context())
    if files and texts:
        raise click.UsageError("give --text or a file, not both", click.get_current_context())
    if resume and (answers_file is None or not files):
        raise click.UsageError("--resume goes with a file and --output", click.get_current_context())
    for option, value in (("--batch-size", batch_size), ("--top-k", top_k)):
        if value is not None and value < 1:
            raise click.UsageError(f"{option}: {value}; allowed: 1 or more", click.get_current_context())
    if stream and (as_json or answers_file is not None):
        raise click.UsageError(
            "--stream shows texts on the terminal; not with --json or --output", click.get_current_context()
        )
    changes = [item for item in overrides if is_override(item)]
    if batch_size is not None:
        changes.append(f"training.per_device_eval_batch_size={batch_size}")
    asked = _Asked(texts, pairs, files[0] if files else None, format, on_error == "skip")
    if stream is None:
        stream = not files and not as_json and answers_file is None and sys.stdout.isatty()
    shown = _Shown(answers_file, resume, top_k, stream, as_json)
    how = (max_new_tokens, temperature, top_p, stops, seed)
    return guarded(_run, output, changes, asked, how, shown)


@dataclass(frozen=True)
class _Asked:
    """What is answered: texts of the command line, or a file."""

    texts: Sequence[str]
    pairs: Sequence[str]
    file: Path | None
    format: str
    skip: bool


@dataclass(frozen=True)
class _Shown:
    """Where answers go, and as what."""

    file: Path | None
    resume: bool
    top_k: int | None
    stream: bool
    as_json: bool


def _run(output: Path, overrides: Sequence[str], asked: _Asked, how: tuple[Any, ...], shown: _Shown) -> None:
    if asked.file is None and not asked.texts:
        raise UserError("--text: nothing to predict; give --text, or a file")
    logger.info(prepare_process())  # before anything that loads torch or the hub's library
    from sktune.distributed.ranks import start_ranks
    from sktune.model.adapter import adapter_folder, read_recipe

    recipe = read_recipe(adapter_folder(output), overrides, reads_data=False).recipe
    ranks = start_ranks(recipe.distributed.timeout_seconds)
    from sktune.answering import answer, predict
    from sktune.cli.answers import check_output, kept_until_whole, read_kept
    from sktune.writing import Writing

    writing = Writing(*how)
    writing.check()
    if shown.stream and ranks.world_size > 1:
        raise UserError(f"--stream: texts are written by {ranks.world_size} ranks at once; leave it out, or use one")
    if shown.file is not None:
        check_output(shown.file, words=recipe.task.reads_words)
    as_written = partial(say, end="", flush=True) if shown.stream else None
    kept: Sequence[Mapping[str, Any]] = ()
    key = ""
    if asked.file is None:
        # Bytes of the command line that are not UTF-8 come as lone surrogates, which no file and no terminal takes.
        first, second = (
            [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in given]
            for given in (asked.texts, asked.pairs)
        )
        answers: Iterator[Mapping[str, Any]] = predict(
            output, first, second or None, ranks, overrides, writing, as_written
        )
    else:
        questions = _of_file(asked.file, asked.format, recipe, overrides, asked.skip)
        if shown.resume and shown.file is not None:
            file = shown.file
            key = _key(adapter_folder(output), overrides, questions, how)
            kept = ranks.on_main(lambda: read_kept(file, key)) or ()
        rest = questions[ranks.broadcast(len(kept)) :]
        answers = answer(output, rest, ranks, overrides, writing, as_written) if rest else iter(())
    if ranks.is_main:
        if shown.resume and shown.file is not None:
            answers = kept_until_whole(shown.file, key, kept, answers)
        _show(answers, shown)
    else:
        for _ in answers:  # of which every rank makes its part
            pass
    ranks.barrier()
    leave()


def _show(answers: Iterator[Mapping[str, Any]], shown: _Shown) -> None:
    from sktune.answering import Answer
    from sktune.cli.answers import partial_file, write_answers

    if shown.top_k is not None:
        answers = (_likeliest(found, shown.top_k) for found in answers)
    if shown.file is not None:
        complain(f"{write_answers(answers, shown.file)} answers: {shown.file}")
        if shown.resume:
            partial_file(shown.file).unlink(missing_ok=True)
        return
    for found in answers:
        if shown.as_json:
            say_json(found)
        elif not shown.stream:
            assert isinstance(found, Answer)
            say(found.line)


def _key(adapter: Path, overrides: Sequence[str], questions: Sequence[Question], how: tuple[Any, ...]) -> str:
    from sktune.model.identity import digest_of_each

    weights = hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    asked = ((one.line, one.text, one.text_pair) for one in questions)
    return digest_of_each([[weights, list(overrides), list(how)], *asked])


def _likeliest(answer: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """An answer with the highest of its probabilities alone."""
    probabilities = answer.get("probabilities")
    if not isinstance(probabilities, dict):
        return answer
    order = sorted(probabilities, key=lambda label: -probabilities[label])[:count]
    shown = copy.copy(answer)
    shown["probabilities"] = {label: probabilities[label] for label in order}  # type: ignore[index]
    return shown


def _of_file(file: Path, format: str, recipe: Recipe, overrides: Sequence[str], skip: bool) -> list[Question]:
    from sktune.data.questions import read_questions

    # The encoding that the recipe names is that of the training data.
    said = any(override.partition("=")[0].strip() in ("data", "data.encoding") for override in overrides)
    data = recipe.data if said else recipe.data.model_copy(update={"encoding": None})
    questions: list[Question] = []
    skipped = 0
    for found in read_questions(file, format, data, recipe.task.name, words=recipe.task.reads_words):
        if not isinstance(found, UserError):
            questions.append(found)
        elif skip:
            logger.warning("%s; skipped", found)
            skipped += 1
        else:
            raise UserError(f"{found}; correct it, or leave out what cannot be read with --on-error skip")
    if skipped:
        logger.warning("%s: %d of %d skipped", file, skipped, skipped + len(questions))
    if not questions:
        raise UserError(f"--file: {file} holds no text to be answered")
    return questions
