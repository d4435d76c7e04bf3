"""`sktune report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sktune.cli.arguments import Command
from sktune.errors import UserError
from sktune.files import COMPARISON_FILE, REPORT_FOLDER
from sktune.process import guarded, prepare_process
from sktune.terminal import complain, make_console, say

_EXAMPLES = """examples:
  sktune report runs/compare/newswire
  sktune report runs/compare/newswire --format md
  sktune report quickstart                                # the newest comparison of an experiment in ./mlflow.db
  sktune report quickstart --tracking-uri http://mlflow:5000
"""


@click.command("report", cls=Command, epilog=_EXAMPLES)
@click.argument("comparison")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "md", "csv", "json"]),
    default="table",
    show_default=True,
    help="What is printed.",
)
@click.option("--tracking-uri", help="Where the experiment is (default: MLFLOW_TRACKING_URI, or ./mlflow.db).")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the files (default: report/ in the comparison).",
)
def command(comparison: str, kind: str, tracking_uri: str | None, output: Path | None) -> int:
    """Tables and pictures of a comparison.

    COMPARISON is its folder, or the name of its MLflow experiment.
    """
    return guarded(_run, comparison, kind, tracking_uri, output)


def _run(comparison: str, kind: str, tracking_uri: str | None, output: Path | None) -> int:
    prepare_process()
    from sktune.comparison.report import build_report
    from sktune.comparison.results import read_results
    from sktune.comparison.tables import write_report
    from sktune.recipe import TrackingSection

    folder = Path(comparison)
    usual = TrackingSection().tracking_uri
    store = Path(usual.removeprefix("sqlite:///"))
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or (usual if store.exists() else None)
    if (folder / COMPARISON_FILE).exists() or (tracking_uri is None and folder.is_dir()):
        results, place = read_results(folder), folder / REPORT_FOLDER
    elif uri is None:
        raise UserError(
            f"{folder}: no such folder; give the folder of a comparison, or the name of an MLflow experiment with "
            f"--tracking-uri (there is no {store} here)"
        )
    else:
        from sktune.comparison.mlflow_results import read_experiment

        results = read_experiment(comparison, uri)
        place = Path("runs") / results.name / REPORT_FOLDER
    report = build_report(results)
    files = write_report(report, output or place)
    print_report(report, kind)
    complain(f"written: {', '.join(str(file) for file in files)}")
    return 0


def print_report(report: Any, kind: str) -> None:
    """Prints a report as `table`, `md`, `csv` or `json`."""
    from sktune.comparison import tables

    if kind == "table":
        console = make_console()
        # Without a terminal nobody sees a width: lines are as long as they are.
        (console if console.is_terminal else make_console(width=200)).print(tables.as_table(report))
    else:
        texts = {"md": tables.as_markdown, "csv": tables.as_csv, "json": tables.as_json}
        say(texts[kind](report), end="")
