"""The page of families and methods is what its result says, and some of it is found again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from training_fixtures import ROOT, _environment

SCRIPT = ROOT / "benchmarks" / "families.py"
RESULT = ROOT / "benchmarks" / "results" / "families.json"


def tried(path: Path) -> dict[str, dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["families"]
    return {name: family["methods"] for name, family in found.items() if family and "methods" in family}


def run(*arguments: str | Path) -> str:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_page_is_what_the_result_says(tmp_path: Path) -> None:
    page = tmp_path / "families.md"
    run("--report", "--page", page)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_nothing_is_wrong_without_a_word_or_ends_in_another_error() -> None:
    families = tried(RESULT)
    assert len(families) > 200
    for family, methods in families.items():
        for method, cell in methods.items():
            assert cell["status"] in ("exact", "refused"), (family, method, cell)
            if cell["status"] == "refused":
                assert family in cell["reason"], (family, method, cell)


def test_some_families_are_found_again(tmp_path: Path) -> None:
    """A decoder, an encoder, latent attention, and one whose padding changes what it reads."""
    chosen = ("llama", "roberta", "deepseek_v3", "convbert")
    again = tmp_path / "families.json"
    run(*chosen, "--output", again, "--page", tmp_path / "families.md")
    before, now = tried(RESULT), tried(again)
    assert sorted(now) == sorted(chosen)
    for family in chosen:
        for method, cell in now[family].items():
            assert cell["status"] == before[family][method]["status"], (family, method, cell)
            if cell["status"] == "exact":
                assert cell["difference"] < 1e-4
