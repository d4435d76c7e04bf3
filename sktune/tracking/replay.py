"""Upload a recorded run to MLflow afterwards: `python -m sktune.tracking.replay OUTPUT_DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sktune.errors import UserError, hide_password, lacks_password
from sktune.terminal import complain, say
from sktune.tracking.record import RUNNING, Record
from sktune.tracking.store import MlflowRun
from sktune.tracking.uri import first_line


def replay(output_dir: Path | str, tracking_uri: str | None = None) -> str:
    """Upload what MLflow lacks of a run; what it has is left alone, so this can be repeated.

    Args:
        output_dir: the run's `output.dir`.
        tracking_uri: the store; None takes the one the run was started with.

    Returns:
        The MLflow run id.

    Raises:
        UserError: no record in the folder, or the store cannot be used or does not answer.
    """
    record = Record.load(Path(output_dir))
    uri = tracking_uri or record.state.tracking_uri
    if lacks_password(uri):
        raise UserError(f"{uri}: the record does not keep the password; give the URI with --tracking-uri.")
    run = MlflowRun(uri, record)
    try:
        run.flush()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {hide_password(uri)} did not take the run ({first_line(error, uri)}); nothing is "
            f"lost, run the same command again once the server answers."
        ) from error
    return record.run_id


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sktune.tracking.replay",
        description="Upload a recorded run to MLflow.",
        epilog="example: python -m sktune.tracking.replay runs/demo --tracking-uri http://localhost:5000",
    )
    parser.add_argument("output_dir", type=Path, help="output.dir of the run")
    parser.add_argument("--tracking-uri", help="default: the one the run was started with")
    options = parser.parse_args(arguments)
    try:
        run_id = replay(options.output_dir, options.tracking_uri)
        state = Record.load(options.output_dir).state
    except UserError as error:
        complain(f"error: {error}")
        return 1
    ending = "still RUNNING: training has not said how it ended" if state.status == RUNNING else state.status
    say(f"run {run_id} in experiment {state.experiment_name!r} is complete ({ending})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
