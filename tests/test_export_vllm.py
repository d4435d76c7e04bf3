"""`sktune export --to vllm`: a prompt for a server of the frozen model, replayed there where there is a vLLM."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import Template
from safetensors.torch import load_file
from tiny_models import TEXT
from training_fixtures import ONE_RANK, TASKS, Sections, Workshop

import sktune
from sktune.answering import predict
from sktune.cli import main
from sktune.embedded import resolve

PYTHON_OF_VLLM = os.environ.get("SKTUNE_TEST_VLLM")
METHODS = {
    "sk_prompt": {"name": "sk_prompt", "text": TEXT},
    "prompt_tuning": {"name": "prompt_tuning", "text": ..., "rank": ..., "num_virtual_tokens": 3},
}


def exported(workshop: Workshop, folder: Path, *options: str) -> Path:
    assert main(["export", str(workshop.output("run")), "--to", "vllm", "--output", str(folder), *options]) == 0
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("template", ["{text}", "Say {{it}}: {text} ="])
def test_the_client_sends_the_prompt_and_what_sktune_reads(
    workshop: Workshop, tmp_path: Path, method: str, template: str
) -> None:
    workshop.train("run", TASKS["generation"], {"method": METHODS[method], "data": {"text_template": template}})
    folder = exported(workshop, tmp_path / "exported")
    code = "import client, json, pathlib; print(json.dumps(client.message(pathlib.Path('.'), 'w1 w2')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    prompt, text = json.loads(done.stdout)["content"]
    assert prompt["type"] == "prompt_embeds"
    sent = torch.load(io.BytesIO(base64.b64decode(prompt["data"])), weights_only=True)
    woven = sktune.load(workshop.output("run")).woven().prompt
    assert woven is not None and torch.equal(sent, woven[0])
    filled = template.format(text="w1 w2")
    # A prompt that is no text brings no BOS.
    assert text == {"type": "text", "text": f"<s>{filled}" if method == "prompt_tuning" else filled}
    parts = [{"type": "text", "text": "<prompt_embeds>"}, text]
    written = Template((folder / "template.jinja").read_text()).render(messages=[{"role": "user", "content": parts}])
    assert written == f"<prompt_embeds>{text['text']}"
    (command,) = re.findall(r"`(vllm serve .*?)`", (folder / "README.md").read_text())
    assert command.split()[2] == workshop.base["model"]["name_or_path"]


@pytest.mark.parametrize(
    ("task", "method", "said"),
    [
        ("sequence", {}, "answers with a head of its own"),
        ("generation", {"name": "lora", "text": ...}, "and lora is none of those"),
        ("sequence", {"name": "sk_prompt"}, "answers with a head of its own"),
    ],
)
def test_what_a_server_cannot_do_is_refused(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str, method: dict[str, Any], said: str
) -> None:
    workshop.train("run", TASKS[task], {"method": method, "training": {"max_steps": 1, "warmup_steps": None}})
    folder = tmp_path / "exported"
    assert main(["export", str(workshop.output("run")), "--to", "vllm", "--output", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()


def test_a_server_that_is_not_there(workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = {"method": METHODS["sk_prompt"], "training": {"max_steps": 1, "warmup_steps": None}}
    workshop.train("run", TASKS["generation"], changes)
    command = ["export", str(workshop.output("run")), "--to", "vllm", "--output", str(tmp_path / "exported")]
    assert main([*command, "--check", "2", "--server", "http://127.0.0.1:9"]) == 2
    assert "--server: http://127.0.0.1:9 cannot be asked" in capsys.readouterr().err
    assert main([*command, "--check", "2"]) == 2
    assert "--check of vllm with --server" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


PREFIX = {"name": "sk_prefix", "text": TEXT, "rank": 4}


@pytest.mark.parametrize(
    "method",
    [PREFIX, {"name": "prefix_tuning", "text": ..., "rank": ..., "num_virtual_tokens": 5}],
    ids=["sk_prefix", "prefix_tuning"],
)
def test_a_prefix_goes_with_a_connector(workshop: Workshop, tmp_path: Path, method: dict[str, Any]) -> None:
    workshop.train("run", TASKS["generation"], {"method": method})
    folder = exported(workshop, tmp_path / "words")
    woven = sktune.load(workshop.output("run")).woven().prefix
    assert woven is not None
    tensors = load_file(folder / "prefix.safetensors")
    assert len(tensors) == 2 * len(woven)
    for layer, (_, pair) in enumerate(woven):
        for kind, tensor in (("key", pair.key), ("value", pair.value)):
            assert torch.equal(tensors[f"layers.{layer}.{kind}"], tensor[0].transpose(0, 1))
    said = json.loads((folder / "client.json").read_text())
    assert len(said["placeholders"]) == woven[0][1].key.shape[2]
    assert said["special_tokens"] is (method["name"] == "prefix_tuning")
    started = json.loads((folder / "kv_transfer.json").read_text())
    assert started["kv_connector_extra_config"] == {"prefixes": {"words": "."}}
    module = ast.parse((folder / f"{started['kv_connector_module_path']}.py").read_text())
    assert started["kv_connector"] in {node.name for node in module.body if isinstance(node, ast.ClassDef)}


@contextmanager
def vllm(model: Path, log: Path, *options: str, beside: Path) -> Iterator[str]:
    """A vLLM server of a model on the CPU; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PYTHON_OF_VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += [*options, "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--block-size", "32", "--enforce-eager", "--max-model-len", "256"]
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": "."}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=beside)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def written(text: str, folder: Path, address: str) -> str:
    command = [sys.executable, "client.py", text, "--url", address, "--max-tokens", "3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(
    PYTHON_OF_VLLM is None,
    reason="needs vLLM in an environment of its own: SKTUNE_TEST_VLLM=/path/to/its/python (see docs/export.md)",
)
@pytest.mark.parametrize("method", [*METHODS, "sk_prefix"])
def test_vllm_writes_what_sktune_writes(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path, method: str
) -> None:
    reviews = {"path": "embedded:sentiment", "train": "train", "validation": None, "test": "test", "max_length": 48}
    changes: Sections = {
        "model": {"name_or_path": "embedded:llama"},
        "method": {**METHODS, "sk_prefix": PREFIX}[method],
        "data": {**reviews, "target_column": "label", "max_train_samples": 64, "max_test_samples": 32},
        "training": {"eval_steps": ...},
    }
    workshop.train("run", TASKS["generation"], changes)
    first = exported(workshop, tmp_path / "films")
    prefix = method == "sk_prefix"
    options = ["--kv-transfer-config", (first / "kv_transfer.json").read_text()] if prefix else []
    if not prefix:
        options = ["--enable-prompt-embeds", "--chat-template", "template.jinja"]
    text = "the waiter was slow and the soup cold ."
    with vllm(resolve("embedded:llama"), tmp_path / "vllm.log", *options, beside=first) as address:
        check = ["--check", "32", "--tolerance", "1e-5", "--server", address]
        # The prefix is known by the name of its folder.
        checked = exported(workshop, tmp_path / "again" / "films", *check)
        there = [written(text, checked, address) for _ in range(2)]
        (here,) = predict(workshop.output("run"), [text], None, ONE_RANK, ["task.max_new_tokens=3"])
        assert there == [here["generated"]] * 2
        if prefix:
            command = ["export", str(workshop.output("run")), "--to", "vllm", "--output", str(tmp_path / "other")]
            assert main([*command, *check]) == 2
            assert "does not have this prefix as 'other'" in capsys.readouterr().err
            # Another one under the same name is none either.
            workshop.train(
                "run", TASKS["generation"], changes, {"output": {"overwrite": True}, "training": {"seed": 7}}
            )
            command[-1] = str(tmp_path / "new" / "films")
            assert main([*command, *check]) == 2
            assert "does not have this prefix as 'films'" in capsys.readouterr().err
    replayed = json.loads((checked / "export.json").read_text())["replayed"]
    assert replayed["examples"] == 32 and replayed["same_answers"] == 1.0
