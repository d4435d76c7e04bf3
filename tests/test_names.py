"""A name that MLflow or the output folder shows stands in one module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sktune import files
from sktune.methods import METHODS
from sktune.registry import Registry
from sktune.tasks import TASKS
from sktune.tracking import names

SKTUNE = Path(__file__).resolve().parents[1] / "sktune"
NAMING: dict[str, str] = {
    "__init__.py": "public classes, for type checkers and editors",
    "cli/compare.py": "examples in the help",
    "cli/init.py": "examples in the help, and the method of a new recipe",
    "model/step_zero.py": "advises what it has just tried, for each way of weaving",
    "methods/llama_adapter/module.py": "advises another method where it is not available itself",
}
"""Modules outside a method's or a task's folder that name one, and why; none of them treats it differently."""
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


INTERNALS = {"library_internals.py", "distributed/deepspeed_internals.py", "imports.py"}
COUNTED = {"planning/activations.py": "counts the storages of torch's own operators"}
"""A module outside `INTERNALS` that uses private parts of a library, and why."""


def test_private_parts_of_libraries_are_used_in_one_module() -> None:
    found = set()
    for path in SKTUNE.rglob("*.py"):
        module = str(path.relative_to(SKTUNE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sktune"):
                private = [part for part in (node.module or "").split(".") if part.startswith("_")]
                private += [alias.name for alias in node.names if alias.name.startswith("_")]
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                own = ast.unparse(node.value) in {"self", "cls", "super()"}
                private = [] if own or node.attr in {"_replace", "_fields", "_asdict"} else [node.attr]
            else:
                continue
            found |= {module} if set(private) - {"__future__"} else set()
    assert found - INTERNALS == COUNTED.keys()


def _named(registry: Registry) -> dict[str, str]:
    """What an entry is called in code -> its folder."""
    found = {}
    for name in registry:
        implementation = registry.implementation(name)
        folder = implementation.__module__.removeprefix("sktune.").replace(".", "/").rpartition("/")[0]
        for called in (name, implementation.__name__, registry.config(name).__name__):
            found[called] = folder
    return found


def _imports() -> Iterator[tuple[str, str]]:
    for path in SKTUNE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [name.name for name in node.names]
                text = " ".join([getattr(node, "module", None) or "", *names]).replace(".", " ")
                yield str(path.relative_to(SKTUNE)), text


def test_methods_and_tasks_are_named_in_their_registry_alone() -> None:
    """Everything else asks traits, so that one more is a folder and a line."""
    named = {**_named(METHODS), **_named(TASKS)}
    found = set()
    for module, text in [*_texts(), *_imports()]:
        if module in ("methods/__init__.py", "tasks/__init__.py") or module.startswith("embedded/"):
            continue
        for called, folder in named.items():
            # English has two of the names too: there the whole text is what counts.
            there = text == called if called in ("full", "regression") else re.search(rf"\b{called}\b", text)
            if there and not module.startswith(f"{folder}/"):
                found.add((module, called))
    assert {module for module, _ in found} == set(NAMING), sorted(found)
