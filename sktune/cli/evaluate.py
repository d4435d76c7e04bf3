"""`sktune evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import click

from sktune.cli.arguments import OverridingCommand, with_logging, with_output
from sktune.process import guarded, leave, prepare_process
from sktune.terminal import say_json

logger = logging.getLogger("sktune")

_EXAMPLES = """examples:
  sktune evaluate runs/smollm2_film_reviews
  sktune evaluate runs/smollm2_film_reviews --split validation training.per_device_eval_batch_size=64
  sktune evaluate runs/smollm2_film_reviews --data reviews.csv --data tweets.jsonl
  sktune evaluate runs/smollm2_film_reviews --data reviews.csv --label-map neg=negative --label-map pos=positive
  deepspeed --num_gpus 2 launchers/evaluate.py runs/llama7b_conll
"""


@click.command("evaluate", cls=OverridingCommand, epilog=_EXAMPLES)
@with_output
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option(
    "--data",
    multiple=True,
    metavar="FILE_OR_FOLDER",
    help="Other data to score instead, with the columns of the recipe: a file, a folder, or a name such as "
    "embedded:tweets; may be given several times. Nothing else has to be there.",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    metavar="FILE_OR_SPLIT",
    help="Which files of a folder, or splits of a name, --data means (default: data.test of the recipe).",
)
@click.option(
    "--label-map",
    multiple=True,
    metavar="OLD=NEW",
    help="What the adapter calls a label of --data; of tagged words also a type, as in PERSON=PER.",
)
@with_logging
def command(
    output: Path,
    overrides: tuple[str, ...],
    split: str,
    data: tuple[str, ...],
    tests: tuple[str, ...],
    label_map: tuple[str, ...],
) -> int:
    """Score a trained adapter on a split of its data, or on other data.

    OUTPUT is the output.dir of a finished run.
    """
    context = click.get_current_context()
    if not data and (tests or label_map):
        raise click.UsageError("--test and --label-map go with --data", context)
    if data and context.get_parameter_source("split") != click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--split names one of the run's own data; with --data use --test", context)
    return guarded(_run, output, split, overrides, data, tests, label_map)


def _run(
    output: Path,
    split: str,
    overrides: Sequence[str],
    data: Sequence[str],
    tests: Sequence[str],
    label_map: Sequence[str],
) -> None:
    logger.info(prepare_process())  # before anything that loads torch or the hub's library
    from sktune.distributed.ranks import start_ranks
    from sktune.inference import adapter_folder, evaluate_run
    from sktune.model.adapter import read_recipe
    from sktune.scoring import parse_label_map, score_data

    timeout = read_recipe(adapter_folder(output), overrides, reads_data=not data).recipe.distributed.timeout_seconds
    renamed = parse_label_map(label_map)
    ranks = start_ranks(timeout)
    result: object
    if data:
        result = score_data(output, data, tests, renamed, ranks, overrides)
    else:
        result = evaluate_run(output, split, ranks, overrides)
    leave()
    if ranks.is_main:
        say_json(result, indent=1)
