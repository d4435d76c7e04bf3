"""What the documents point at is there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "docker" / "README.md"])
NAMED_TEST = re.compile(r"(tests/test_\w+\.py)(?:::(\w+))?")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(document: Path) -> None:
    for file, name in NAMED_TEST.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file
        if name:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_cell_of_the_support_matrix_names_a_test_or_says_what_happens() -> None:
    text = (ROOT / "docs" / "support_matrix.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^- (\[\w\]) `tests/", text, re.MULTILINE))
    used = set(re.findall(r"\| (\[\w\]) ", text))
    assert used == explained
    assert NAMED_TEST.search(text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target.strip()).exists(), target


def test_the_table_of_rooms_is_the_order_that_is_checked() -> None:
    """`lint-imports` refuses imports from a later room, and a room that the contract leaves out."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`sktune/.*?) \|", design, re.MULTILINE)
    rooms = [room for row in rows for room in re.findall(r"`sktune/(\w+)(?:/|\.py)`", row)]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert rooms == [*reversed(settings["tool"]["importlinter"]["contracts"][0]["layers"])]
