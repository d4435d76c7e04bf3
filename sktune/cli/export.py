"""`sktune export`."""

from __future__ import annotations

from pathlib import Path

import click

from sktune.cli.arguments import OverridingCommand, with_logging, with_output
from sktune.export import TARGETS
from sktune.process import guarded, prepare_process
from sktune.terminal import say, say_json

_EXAMPLES = """examples:
  sktune export runs/smollm2_film_reviews_words --to peft --output exported
  sktune export runs/smollm2_film_reviews --to transformers --output exported --check 32
  sktune export runs/words --to peft --output exported --check 32 --tolerance 0.01
  sktune export runs/prompt --to vllm --output exported --check 32 --server http://localhost:8000
  sktune export runs/smollm2_film_reviews --to mlflow --output exported --register films
"""


@click.command("export", cls=OverridingCommand, epilog=_EXAMPLES)
@with_output
@click.option("--to", "target", type=click.Choice(tuple(TARGETS)), required=True, help="Whose form.")
@click.option("--output", "destination", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--check", type=click.IntRange(1), help="Replay so many examples of the test split there, and compare.")
@click.option(
    "--tolerance",
    type=float,
    help="Largest difference of what is compared, of the largest one; by default 0.001, and 0.1 in 16 bits.",
)
@click.option("--server", metavar="URL", help="With --to vllm --check: where vLLM runs the frozen model.")
@click.option(
    "--register",
    "register_as",
    metavar="NAME",
    help="With --to mlflow: also upload it to the run's MLflow, as the next version of this registered model.",
)
@with_logging
def command(
    output: Path,
    overrides: tuple[str, ...],
    target: str,
    destination: Path,
    check: int | None,
    tolerance: float | None,
    server: str | None,
    register_as: str | None,
) -> int:
    """Write a trained adapter in the form of another tool.

    OUTPUT is the output.dir of a finished run. peft: a folder that PeftModel.from_pretrained reads. transformers: the
    prefix as the start of a KV cache or the prompt as embeddings, the head, and the lines that use them. vocabulary:
    the prompt as added tokens of a whole model, for engines that know no adapters. vllm: the prompt or prefix, and a
    client that asks with it a server of the frozen model. mlflow: a model for mlflow.pyfunc.load_model and `mlflow
    models serve`, which sktune answers for.
    """
    if register_as is not None and target != "mlflow":
        raise click.UsageError("--register goes with --to mlflow", click.get_current_context())
    if (server is not None) != (target == "vllm" and check is not None):
        told = "--server goes with --to vllm --check, and --check of vllm with --server"
        raise click.UsageError(told, click.get_current_context())
    return guarded(_run, output, target, destination, list(overrides), check, tolerance, register_as, server)


def _run(
    output: Path,
    target: str,
    destination: Path,
    overrides: list[str],
    check: int | None,
    tolerance: float | None,
    register_as: str | None,
    server: str | None,
) -> None:
    prepare_process()
    from sktune.export.exporting import export

    card = export(
        output,
        target,
        destination,
        overrides=overrides,
        check=check,
        tolerance=tolerance,
        register_as=register_as,
        server=server,
    )
    say_json(card, indent=1)
    say(f"exported: {destination}  (how to use it: {destination / 'README.md'})")
