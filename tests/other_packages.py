"""Packages of other people, as docs/methods.md and docs/tasks.md show them, and running sktune with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from training_fixtures import ROOT

_FILE = re.compile(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
QUICKSTART = str(ROOT / "recipes" / "quickstart_miniature.yaml")


def write_package(document: str, folder: Path) -> list[str]:
    """Writes the Python files that a page of docs/ shows; returns their names, in its order."""
    files = _FILE.findall((ROOT / "docs" / document).read_text(encoding="utf-8"))
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [name for name, _ in files]


def run(script: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The script as `sktune`; Python finds the package beside it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = [sys.executable, str(script), *command]
    return subprocess.run(done, capture_output=True, text=True, env=environment, cwd=script.parent, timeout=300)
