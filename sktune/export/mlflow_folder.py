"""An adapter as a model of MLflow: a folder for `mlflow.pyfunc.load_model` and `mlflow models serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sktune.data import Example
from sktune.errors import UserError
from sktune.export.replaying import examples_to_replay, replay_answers, shown_here
from sktune.export.trained import Trained, Usage
from sktune.model.adapter import adapter_folder
from sktune.tracking.model_folder import TEXT, TEXT_PAIR, write_model_folder

START_SECONDS = 600.0
"""For a scoring server that loads the frozen model."""
_OF_THE_MODEL = ("model", "quantization", "task", "data")


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the folder; the model is loaded with the overrides that it is exported with."""
    overrides = [given for given in trained.overrides if given.partition("=")[0].split(".")[0] in _OF_THE_MODEL]
    write_model_folder(folder, adapter_folder(trained.folder), trained.recipe, overrides)
    columns = f'"{TEXT}": ["..."]' + (f', "{TEXT_PAIR}": ["..."]' if trained.recipe.data.text_pair_column else "")
    return Usage(
        "import mlflow\nimport pandas\n\n"
        f'model = mlflow.pyfunc.load_model("{folder.name}")\n'
        f"answers = model.predict(pandas.DataFrame({{{columns}}}))",
        f"Or as a server: `mlflow models serve -m {folder.name} --env-manager local`. It needs sktune where it is "
        "loaded, and the frozen model, which is not in the folder.",
    )


def replay(trained: Trained, folder: Path, count: int) -> dict[str, Any]:
    """Answers to test examples here, and of `mlflow models serve`.

    Raises:
        UserError: where that server does not start.
    """
    examples = examples_to_replay(trained, count)
    here = [shown_here(trained, example) for example in examples]
    with _served(folder) as address:
        there = _asked(address, examples)
    return replay_answers(examples, here, there)


def _asked(address: str, examples: Sequence[Example]) -> list[dict[str, Any]]:
    paired = any(example.text_pair is not None for example in examples)
    rows = [[example.text or " ".join(example.words), *([example.text_pair] if paired else [])] for example in examples]
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), 8):
        table = {"columns": [TEXT, TEXT_PAIR][: 1 + paired], "data": rows[start : start + 8]}
        request = urllib.request.Request(
            f"{address}/invocations",
            json.dumps({"dataframe_split": table}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                found += json.loads(answer.read())["predictions"]
        except urllib.error.HTTPError as error:
            raise UserError(
                f"--check: MLflow's scoring server says {error.code}: {error.read(2000).decode()}"
            ) from None
    return found


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Inside, MLflow's scoring server answers at the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder.absolute())]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # MLflow starts uvicorn by its name, which is beside this Python where no environment was activated.
    beside = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))}
    with tempfile.TemporaryFile() as log:
        # The server is a process of that process.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=beside)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()[-3:]
                    raise UserError("--check: mlflow models serve did not start: " + " / ".join(said))
                time.sleep(0.2)
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
