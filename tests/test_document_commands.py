"""The commands in the documents: each is understood by the command line, and those of the tutorial run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sktune.cli.arguments import is_override, recipe_and_overrides
from sktune.cli.commands import sktune
from sktune.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOT_RUN = {
    "bash launchers/": "sets up an environment; CI runs it (.ci/run)",
    "mlflow ui": "a server of MLflow",
    "hf download": "needs a model hub",
    "printf": "part of the tutorial, which runs",
    "eval ": "switches on completion, which tests/test_cli.py asks for its answers",
    "python benchmarks/": "takes hours; tests/test_benchmarks.py runs short forms",
    "source ": "activates an environment",
    "docker": "needs Docker",
    "python -m sktune.embedded.build": "rebuilds the miniature, which takes an hour",
}
"""What is no command of sktune, by its beginning, and why it is not run here."""
OWN_FILES = {"films.yaml"}
"""Recipes that the tutorial makes."""


def commands_of(document: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


COMMANDS = [pytest.param(line, id=f"{path.name}: {line[:60]}") for path in DOCUMENTS for line in commands_of(path)]


@pytest.mark.parametrize("line", COMMANDS)
def test_it_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line.startswith(tuple(NOT_RUN)):
        return
    monkeypatch.chdir(ROOT)
    found = re.search(r"(?:^|\s)(?:sktune|launchers/(?P<launcher>train|evaluate|compare)\.py)\s(?P<rest>.*)", line)
    assert found, f"neither a command of sktune nor in NOT_RUN: {line}"
    words = shlex.split(found["rest"], comments=True)
    if found["launcher"]:
        words.insert(0, found["launcher"])
    name, *arguments = words
    command = sktune.get_command(sktune.make_context("sktune", ["list"]), name)
    assert command is not None, name
    given = command.make_context(name, list(arguments)).params
    if name in ("train", "compare", "plan"):
        recipe, overrides = recipe_and_overrides(given["recipe"], given["arguments"])
        if recipe not in OWN_FILES:
            load_recipe(recipe, overrides)
    elif name == "validate":
        overrides = [one for one in given["arguments"] if is_override(one)]
        for pattern in given["arguments"]:
            if not is_override(pattern) and pattern not in OWN_FILES:
                files = list(ROOT.glob(pattern))
                assert files, pattern
                load_recipe(files[0], overrides)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S))
    function = f'sktune() {{ "{sys.executable}" -m sktune "$@"; }}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-ec", f"{function}\n{script}"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "runs" / "films" / "adapter" / "adapter.safetensors").is_file()
    assert '"accuracy"' in found.stdout
    assert "a fine film\n  -> " in found.stdout


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
