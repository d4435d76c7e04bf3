"""What the documents point at is there."""

from __future__ import annotations

import ast
import re
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


def test_no_room_imports_from_a_later_one() -> None:
    """The order of the table in docs/design.md; imports inside functions count, those for types alone do not."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`sktune/.*?) \|", design, re.MULTILINE)
    place = {
        name.removesuffix(".py").rstrip("/"): number
        for number, cell in enumerate(table)
        for name in re.findall(r"`sktune/([\w./]+)`", cell)
    }
    rooms = {
        path.stem for path in (ROOT / "sktune").iterdir() if path.name[0] not in "_." and path.suffix in ("", ".py")
    }
    assert rooms == set(place)
    for file in (ROOT / "sktune").rglob("*.py"):
        here = file.relative_to(ROOT / "sktune").parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module in _imported(ast.parse(file.read_text(encoding="utf-8"))):
            there = module.split(".")[1]
            if there in place:
                assert place[there] <= place[here], f"{file.relative_to(ROOT)} imports {module}"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return []
    found = [name for child in ast.iter_child_nodes(node) for name in _imported(child)]
    if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("sktune."):
        found.append(node.module)
    return found
