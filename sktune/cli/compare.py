"""`sktune compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sktune.cli.arguments import OverridingCommand, recipe_and_overrides, with_logging, with_recipe
from sktune.errors import UserError
from sktune.process import guarded, join_ranks, leave
from sktune.terminal import complain, say
from sktune.training.stopping import advising

_EXAMPLES = """examples:
  sktune compare recipes/compare/newswire.yaml
  sktune compare recipes/quickstart.yaml --methods sk_prefix,lora,head_only --seeds 3 --output runs/three \\
      --grid training.learning_rate=1e-3,3e-3,1e-2
  deepspeed --num_gpus 2 launchers/compare.py --recipe recipes/compare/newswire.yaml

The same command again goes on: finished cells are not run again, an interrupted one resumes.
"""


@click.command("compare", cls=OverridingCommand, epilog=_EXAMPLES)
@with_recipe
@click.option("--methods", help="Labels of compare.methods or names of methods, separated by commas.")
@click.option("--seeds", type=int, help="How many: training.seed and the ones after it.")
@click.option("--grid", multiple=True, metavar="FIELD=A,B", help="Values of a field; may be given several times.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the comparison (default: the recipe's output.dir).",
)
@click.option("--skip-refused", is_flag=True, help="Run what can work, where something cannot.")
@with_logging
def command(
    recipe: str | None,
    arguments: tuple[str, ...],
    methods: str | None,
    seeds: int | None,
    grid: tuple[str, ...],
    output: Path | None,
    skip_refused: bool,
) -> int:
    """Run several methods on one recipe, each once."""
    path, overrides = recipe_and_overrides(recipe, arguments)
    chosen = [part.strip() for part in (methods or "").split(",") if part.strip()]
    return guarded(_run, path, overrides, seeds, grid, chosen, output, skip_refused)


def overrides_of(given: Sequence[str], seeds: int | None, grid: Sequence[str]) -> list[str]:
    """The command line as overrides of the recipe.

    Args:
        given: overrides as they were typed.
        seeds: of `--seeds`.
        grid: of each `--grid`.

    Raises:
        UserError: for a grid that is not `field=value,value`.
    """
    overrides = list(given)
    if seeds is not None:
        overrides.append(f"compare.seeds={seeds}")
    if grid:
        overrides += ["compare.grid={}", "compare.own_grids={}"]  # what is typed is meant for every method
    for item in grid:
        field, equals, values = item.partition("=")
        if not equals or not values.strip():
            raise UserError(f"--grid: {item!r} is not FIELD=VALUE,VALUE, for example training.learning_rate=1e-3,3e-3")
        field, values = field.strip(), values.strip()
        if any(one.startswith(f"compare.grid.{field}=") for one in overrides):
            raise UserError(f"--grid: {field} is given twice; list its values in one, separated by commas")
        overrides.append(f"compare.grid.{field}={values if values.startswith('[') else f'[{values}]'}")
    return overrides


def refuse_idle(overrides: Sequence[str]) -> None:
    """Refuses overrides that mean something to a single run only.

    Raises:
        UserError: for the first of them.
    """
    instead = {
        "output.overwrite": "a comparison never writes over its cells; remove the folder, or give another (--output)",
        "output.dir": "give the folder of the comparison with --output",
        "training.resume": "a comparison always goes on",
    }
    for override in overrides:
        if why := instead.get(override.partition("=")[0].strip()):
            raise UserError(f"{override}: {why}")


def _run(
    recipe: str,
    given: Sequence[str],
    seeds: int | None,
    grid: Sequence[str],
    chosen: Sequence[str],
    output: Path | None,
    skip_refused: bool,
) -> int:
    from sktune.comparison.cells import plan_cells, refusal_message
    from sktune.embedded import check_fetched

    refuse_idle(given)
    overrides = overrides_of(given, seeds, grid)
    cells, refused, base = plan_cells(Path(recipe), overrides, output, chosen)
    own = base.recipe
    check_fetched(own.model.name_or_path, own.model.tokenizer, own.data.path)
    folder = output or Path(own.output.dir)
    if refused:
        message = refusal_message(refused)
        if not skip_refused or not cells:
            raise UserError(message)
        complain(message)
    with advising("the same command goes on from there"):
        ranks = join_ranks(own.distributed.timeout_seconds)
        from sktune.cli.report import print_report
        from sktune.comparison.runner import compare
        from sktune.errors import hide_password

        report = compare(cells, base, overrides, folder, ranks)
    if report is not None:  # on the main rank
        print_report(report, "table")
        say(f"comparison: {folder}  (report: {folder}/report/report.md)")
        if own.tracking.enabled:
            uri = hide_password(own.tracking.tracking_uri)
            say(f"tracked: {uri}, experiment {own.tracking.experiment_name}", flush=True)
    ranks.barrier()  # a launcher ends the others when one has gone
    leave()
    return int(report is not None and any(cell.name in report.failed for cell in cells))
