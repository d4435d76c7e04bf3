"""Adapters on a model hub: pushed to, and loaded from, a server that speaks as much of the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from training_fixtures import TASKS, Workshop

import sktune
from sktune.errors import UserError

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of repositories in the server's `files`, and wants the token `secret`."""

    def respond(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def files(self) -> dict[str, bytes]:
        return self.server.files  # type: ignore[attr-defined,no-any-return]

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}/someone/films"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self.respond(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != "Bearer secret":
            return self.respond(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            self.server.asked = asked  # type: ignore[attr-defined]
            return self.respond(200, {"url": self.address})
        if "/preupload/" in self.path:
            asked = json.loads(content)["files"]
            return self.respond(
                200, {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in asked]}
            )
        assert "/commit/main" in self.path
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.respond(200, {"commitUrl": f"{self.address}/commit/1", "commitOid": COMMIT, "success": True})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/films/tree/"):
            tree = [{"type": "file", "path": n, "size": len(f), "oid": n} for n, f in self.files.items()]
            return self.respond(200, tree)
        if self.path.startswith("/api/models/someone/films"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.respond(200, {"id": "someone/films", "sha": COMMIT, "siblings": siblings})
        name = self.path.rpartition("/")[2]
        if "/someone/films/resolve/" in self.path and name in self.files:
            etag = hashlib.sha1(self.files[name]).hexdigest()
            return self.respond(200, self.files[name], X_Repo_Commit=COMMIT, ETag=f'"{etag}"')
        return self.respond(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def in_python(hub: ThreadingHTTPServer | None, folder: Path, lines: str, token: str = "secret") -> str:
    """What lines of Python print, in a process whose hub is that one, or cannot be reached."""
    port = 9 if hub is None else hub.server_port
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": token}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    code = f"import sktune, torch\nfrom sktune.errors import UserError\n{lines}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_adapter_is_pushed_and_loaded_again(workshop: Workshop, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    workshop.train("run", TASKS["sequence"])
    run = workshop.output("run")
    ask = "print(model(**model.encode(['w1 w2', 'w30'])).logits.tolist())"
    pushed = in_python(
        hub,
        tmp_path,
        f"model = sktune.load({str(run)!r})\n{ask}\nprint(model.push_to_hub('someone/films', private=True))",
    ).splitlines()
    assert pushed[1].endswith("/someone/films/commit/1")
    asked: dict[str, Any] = hub.asked  # type: ignore[attr-defined]
    assert asked.get("private") or asked.get("visibility") == "private"
    files: dict[str, bytes] = hub.files  # type: ignore[attr-defined]
    assert sorted(files) == ["README.md", "adapter.json", "adapter.safetensors", "recipe.yaml"]
    files["model.py"] = b"raise SystemExit('this ran')"
    loaded = in_python(hub, tmp_path, f"model = sktune.load('someone/films')\n{ask}").splitlines()
    assert json.loads(loaded[0]) == json.loads(pushed[0])
    assert not list((tmp_path / "hf").rglob("model.py"))


def test_what_the_hub_refuses_is_said_in_a_sentence(
    workshop: Workshop, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    workshop.train("run", TASKS["sequence"], {"training": {"max_steps": 1, "warmup_steps": None}})
    tell = "try:\n    {}\nexcept UserError as error:\n    print(error)"
    push = tell.format(f"sktune.load({str(workshop.output('run'))!r}).push_to_hub('someone/films')")
    assert "someone/films: the hub refuses it: " in in_python(hub, tmp_path, push, token="wrong")
    assert "someone/films: the hub cannot be reached: " in in_python(None, tmp_path, push)
    load = tell.format("sktune.load('someone/else')")
    assert "someone/else: no folder here, and no repository on the hub" in in_python(hub, tmp_path, load)
    assert "someone/else: no folder here, and the hub cannot be reached" in in_python(None, tmp_path, load)
    with pytest.raises(UserError, match=r"revision: .* is a folder, and has none"):
        sktune.load(workshop.output("run"), revision="main")
    with pytest.raises(UserError, match="no trained adapter here"):
        sktune.load(tmp_path / "nothing")


@pytest.mark.parametrize("task", ["token", "generation", "regression"])
def test_the_card_says_what_an_adapter_is(workshop: Workshop, task: str, tmp_path: Path) -> None:
    packed = {"load_in_4bit": True}
    workshop.train("run", TASKS[task], {"quantization": packed, "training": {"max_steps": 1, "warmup_steps": None}})
    folder = workshop.output("run") / "adapter"
    card = ModelCard((folder / "README.md").read_text())
    expected = {"token": "token-classification", "generation": "text-generation", "regression": "text-classification"}
    assert card.data.pipeline_tag == expected[task]
    assert card.data.base_model is None  # a folder of this machine
    said = json.loads((folder / "adapter.json").read_text())
    assert said["quantization"]["load_in_4bit"] and said["dtype"] == "float32"
    assert said["versions"]["torch"] == torch.__version__
    assert "in 4 bits" in card.text and "sk_prefix" in card.text
    text = yaml.safe_load((folder / "recipe.yaml").read_text())["method"]["text"]
    assert f"    {text}" in card.text.splitlines()
    assert str(workshop.base["model"]["name_or_path"]) not in card.content
    for name, value in said["metrics"].items():
        assert f"| {name} | {value:.4g} |" in card.text
    # The folder is a repository's as it is, and so is what Python saves.
    if task != "generation":
        tuned = sktune.load(folder)
        assert {file.name for file in tuned.save(tmp_path / "saved").iterdir()} == {
            file.name for file in folder.iterdir()
        }
