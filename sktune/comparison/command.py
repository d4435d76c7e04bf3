"""The commands `sktune compare` and `sktune report`, and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sktune.embedded import check_fetched
from sktune.errors import UserError
from sktune.files import COMPARISON_FILE, REPORT_FOLDER
from sktune.process import join_ranks, leave, prepare_process
from sktune.training.stopping import advising

COMPARE_EXAMPLES = """examples:
  sktune compare recipes/compare/newswire.yaml
  sktune compare recipes/quickstart.yaml --methods sk_prefix,lora,head_only --seeds 3 --output runs/three \\
      --grid training.learning_rate=1e-3,3e-3,1e-2
  deepspeed --num_gpus 2 launchers/compare.py --recipe recipes/compare/newswire.yaml

The same command again goes on: finished cells are not run again, an interrupted one resumes.
"""
REPORT_EXAMPLES = """examples:
  sktune report runs/compare/newswire
  sktune report runs/compare/newswire --format md
  sktune report quickstart                                # the newest comparison of an experiment in ./mlflow.db
  sktune report quickstart --tracking-uri http://mlflow:5000
"""


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a comparison besides the recipe."""
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe of all cells")
    parser.add_argument("--methods", help="labels of compare.methods or names of methods, separated by commas")
    parser.add_argument("--seeds", type=int, help="how many: training.seed and the ones after it")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=A,B", help="values of a field; may be given several times"
    )
    parser.add_argument("--output", type=Path, help="folder of the comparison (default: the recipe's output.dir)")
    parser.add_argument("--skip-refused", action="store_true", help="run what can work, where something cannot")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a report."""
    parser.add_argument("comparison", help="folder of a comparison, or the name of an MLflow experiment")
    parser.add_argument("--format", choices=("table", "md", "csv", "json"), default="table", help="what is printed")
    parser.add_argument("--tracking-uri", help="where the experiment is (default: ./mlflow.db)")
    parser.add_argument("--output", type=Path, help="folder of the files (default: report/ in the comparison)")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The command line as overrides of the recipe.

    Raises:
        UserError: for a grid that is not `field=value,value`.
    """
    overrides = list(options.overrides)
    if options.seeds is not None:
        overrides.append(f"compare.seeds={options.seeds}")
    if options.grid:
        overrides += ["compare.grid={}", "compare.own_grids={}"]  # what is typed is meant for every method
    for item in options.grid:
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


def run_compare(recipe: str, options: argparse.Namespace) -> int:
    """`sktune compare`, on this rank; returns 1 where a cell failed."""
    from sktune.comparison.cells import plan_cells, refusal_message

    refuse_idle(options.overrides)
    overrides = overrides_of(options)
    chosen = [part.strip() for part in (options.methods or "").split(",") if part.strip()]
    cells, refused, base = plan_cells(Path(recipe), overrides, options.output, chosen)
    own = base.recipe
    check_fetched(own.model.name_or_path, own.model.tokenizer, own.data.path)
    folder = options.output or Path(own.output.dir)
    if refused:
        message = refusal_message(refused)
        if not options.skip_refused or not cells:
            raise UserError(message)
        print(message, file=sys.stderr)
    with advising("the same command goes on from there"):
        ranks = join_ranks(own.distributed.timeout_seconds)
        from sktune.comparison.runner import compare
        from sktune.tracking.uri import hide_password

        report = compare(cells, base, overrides, folder, ranks)
    if report is not None:  # on the main rank
        _print(report, "table")
        print(f"comparison: {folder}  (report: {folder}/report/report.md)")
        if own.tracking.enabled:
            uri = hide_password(own.tracking.tracking_uri)
            print(f"tracked: {uri}, experiment {own.tracking.experiment_name}", flush=True)
    ranks.barrier()  # a launcher ends the others when one has gone
    leave()
    return int(report is not None and any(cell.name in report.failed for cell in cells))


def run_report(options: argparse.Namespace) -> int:
    """`sktune report`."""
    prepare_process()
    from sktune.comparison.report import build_report
    from sktune.comparison.results import read_results
    from sktune.comparison.tables import write_report
    from sktune.recipe import TrackingSection

    folder = Path(options.comparison)
    usual = TrackingSection().tracking_uri
    store = Path(usual.removeprefix("sqlite:///"))
    uri = options.tracking_uri or (usual if store.exists() else None)
    if (folder / COMPARISON_FILE).exists() or (options.tracking_uri is None and folder.is_dir()):
        results, place = read_results(folder), folder / REPORT_FOLDER
    elif uri is None:
        raise UserError(
            f"{folder}: no such folder; give the folder of a comparison, or the name of an MLflow experiment with "
            f"--tracking-uri (there is no {store} here)"
        )
    else:
        from sktune.comparison.mlflow_results import read_experiment

        results = read_experiment(options.comparison, uri)
        place = Path("runs") / results.name / REPORT_FOLDER
    report = build_report(results)
    files = write_report(report, options.output or place)
    _print(report, options.format)
    print(f"written: {', '.join(str(file) for file in files)}", file=sys.stderr)
    return 0


def _print(report: Any, kind: str) -> None:
    from rich.console import Console

    from sktune.comparison import tables

    if kind == "table":
        console = Console()
        # Without a terminal nobody sees a width: lines are as long as they are.
        (console if console.is_terminal else Console(width=200)).print(tables.as_table(report))
    else:
        texts = {"md": tables.as_markdown, "csv": tables.as_csv, "json": tables.as_json}
        print(texts[kind](report), end="")
