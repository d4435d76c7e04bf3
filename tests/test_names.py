"""A name that MLflow or the output folder shows stands in one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sktune import files
from sktune.tracking import names

SKTUNE = Path(__file__).resolve().parents[1] / "sktune"
METRIC_PREFIXES = ("train/", "validation/", "test/", "speed/", "memory/", names.FINAL_PREFIX, names.COMPARE_PREFIX)


def _texts(room: str = "") -> Iterator[tuple[str, str]]:
    """(module, text) of every literal that is no docstring; of an f-string its parts."""
    for path in (SKTUNE / room).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield str(path.relative_to(SKTUNE)), node.value


def test_metrics_are_named_in_one_module() -> None:
    found = {module for module, text in _texts() if text.startswith(METRIC_PREFIXES)}
    assert found == {"tracking/names.py"}


def test_tags_are_named_in_one_module() -> None:
    tags = {value for name, value in vars(names).items() if name.endswith("_TAG")}
    for module, kinds in {
        "training/tracked.py": (ast.Dict, ast.Subscript),
        "training/run.py": (ast.Dict, ast.Subscript),
        "comparison/mlflow_results.py": (ast.Subscript,),
    }.items():
        nodes = [node for node in ast.walk(ast.parse((SKTUNE / module).read_text(encoding="utf-8")))]
        keys = [key for node in nodes if isinstance(node, kinds) for key in _keys(node)]
        assert keys, module
        assert not tags & {key.value for key in keys if isinstance(key, ast.Constant)}, module


def _keys(node: ast.AST) -> list[ast.expr | None]:
    return node.keys if isinstance(node, ast.Dict) else [node.slice] if isinstance(node, ast.Subscript) else []


def test_output_files_are_named_in_one_module() -> None:
    known = {
        value
        for name, value in vars(files).items()
        if name.isupper() and isinstance(value, str) and "." in value and value != files.LOCK_FILE
    }
    found = {
        (module, text) for room in ("training", "comparison", "tracking", "model") for module, text in _texts(room)
    }
    assert not {(module, text) for module, text in found if text in known}
