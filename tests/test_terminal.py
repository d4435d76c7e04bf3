"""What reaches a terminal: control characters are escaped, passwords are hidden, and nothing else prints."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest

from sktune.cli import main
from sktune.terminal import LogFormatter, complain, make_console, printable, say, say_json

SKTUNE = Path(__file__).resolve().parents[1] / "sktune"
HOSTILE = "a\x1b[31mred\x1b[0m\rb\x9bc\u202ed\ud83de"
SHOWN = "a\\x1b[31mred\\x1b[0m\\rb\\x9bc\\u202ed\\ud83de"


def test_control_characters_are_escaped_wherever_something_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("line\n\tsecond: é 漢 😀") == "line\n\tsecond: é 漢 😀"
    say(HOSTILE)
    complain(HOSTILE)
    say_json({"text": HOSTILE})
    make_console(width=200).print(HOSTILE, markup=False)
    out, err = capsys.readouterr()
    plain, as_json, table = out.splitlines()
    assert (plain, err) == (SHOWN, f"{SHOWN}\n")
    assert table == SHOWN.replace("\\r", "")  # rich itself drops carriage returns
    assert as_json.isprintable()
    assert json.loads(as_json) == {"text": HOSTILE}


def test_log_lines_are_escaped_and_hide_passwords() -> None:
    record = logging.makeLogRecord({"msg": "\x1b]0;title\x07 at http://me:se@cret@host/?token=abc&x=1"})
    assert LogFormatter().format(record) == "\\x1b]0;title\\x07 at http://me:***@host/?token=***&x=1"


def test_a_name_in_a_file_cannot_write_over_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "\x1b[2Jx.yaml"
    recipe.write_text('"\\e[31mname": 1\n', encoding="utf-8")
    assert main(["validate", str(recipe)]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[2Jx.yaml" in err
    assert "\\x1b[31mname" in err


def test_nothing_prints_in_another_way() -> None:
    found = set()
    for path in SKTUNE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "Console", "rich.print"):
                found.add(str(path.relative_to(SKTUNE)))
    # The bars of progress have fixed labels; `build` is of the makers; the client runs without sktune, once copied out.
    assert found == {"terminal.py", "progress.py", "embedded/build.py", "export/vllm_client.py"}
