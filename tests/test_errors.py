"""What the user can mend is one message; everything else is a defect, with its traceback."""

from __future__ import annotations

import ast
import errno
from pathlib import Path
from typing import NoReturn

import pytest

from sktune.errors import UserError
from sktune.process import guarded

SKTUNE = Path(__file__).resolve().parents[1] / "sktune"
OF_A_CALLER = {"data/batches.py", "registry.py", "tracking/figures.py"}
"""Modules that raise ValueError at code that calls them wrongly, which no recipe can bring about."""


def _raising(error: Exception) -> NoReturn:
    raise error


def test_what_the_user_can_mend_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(_raising, UserError("data.path: there is no folder")) == 2
    assert capsys.readouterr().err == "error: data.path: there is no folder\n"
    assert guarded(_raising, OSError(errno.ENOSPC, "No space left on device", "runs/adapter.json")) == 2
    assert "No space left on device: 'runs/adapter.json'" in capsys.readouterr().err


def test_a_defect_shows_its_traceback() -> None:
    with pytest.raises(ValueError, match="too many values to unpack"):
        guarded(_raising, ValueError("too many values to unpack"))


def test_nothing_raises_another_error_at_the_user() -> None:
    found = set()
    for path in SKTUNE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and ast.unparse(node.exc.func) == "ValueError"
            ):
                found.add(str(path.relative_to(SKTUNE)))
    assert found <= OF_A_CALLER
