"""The Python of docs/python.md and of the README runs, on the miniature that comes with sktune."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from sktune.embedded import resolve

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"^name = .*$", re.MULTILINE)


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    found = blocks("docs/python.md")
    assert len(found) == 9
    names: dict[str, Any] = {}
    for block in found:
        if "import SFTTrainer" in block.replace("SFTConfig, ", "") and importlib.util.find_spec("trl") is None:
            continue
        exec(NAMED.sub(f"name = {str(resolve('embedded:llama'))!r}", block), names)
    assert (tmp_path / "my_adapter" / "adapter.safetensors").is_file()
    assert names["written"].shape[0] == 2
    assert names["model"].training is False
    assert all(parameter.requires_grad for parameter in names["model"].parameters())


def test_the_readmes_block_runs() -> None:
    (block,) = blocks("README.md")
    names: dict[str, Any] = {"name": str(resolve("embedded:llama"))}
    exec(block, names)
    assert names["tuned"].parameters_to_train()
