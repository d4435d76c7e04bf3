"""`sktune serve`: many adapters of one frozen model over HTTP, by the real command and real requests."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from test_mlflow_ui import CHROMIUM, FLAGS
from training_fixtures import ONE_RANK, TASKS, Sections, Workshop, _environment

from sktune.cli import main
from sktune.serving.adapters import Shelf
from sktune.serving.app import Limits, build_app
from sktune.serving.metrics import Metrics
from sktune.serving.reading import Item, ask, kind, read
from sktune.serving.waiting import Full, NotAnswered, Reader
from sktune.tasks import TASKS as ALL_TASKS

TOKEN = "correct-horse-battery"
TEXTS = ["w1 w2 w15", "w12", "w3 w13 w14 w4 w5 w6 w16 w17", "w25 w1"]
QUICK: Sections = {
    "training": {"max_steps": 3, "warmup_steps": 0, "eval_steps": ..., "learning_rate": 0.1, "head_learning_rate": 0.5},
    "data": {"validation": None, "test": None},
}
SK_PROMPT: Sections = {"method": {"name": "sk_prompt"}}
IN_WORDS: Sections = {"training": {"head_learning_rate": ...}}
RUNS: dict[str, tuple[Sections, ...]] = {
    **{task: (TASKS[task],) for task in TASKS},
    "prompt": (TASKS["sequence"], SK_PROMPT),
    "long_prompt": (TASKS["regression"], {"method": {"name": "sk_prompt", "text": "find the names w1 w2 w3 w4 w5 w6"}}),
    "other_words": (TASKS["words"], {"task": {"label_words": {"no": "w1", "yes": "w2 w3", "maybe": "w4 w5 w6"}}}),
    "head": (TASKS["token"], {"method": {"name": "head_only", "text": ..., "rank": ...}}),
    "lora": (TASKS["sequence"], {"method": {"name": "lora", "text": ..., "rank": 2}}),
    "second_lora": (TASKS["token"], {"method": {"name": "lora", "text": ..., "rank": 2}}),
    "ia3": (TASKS["token"], {"method": {"name": "ia3", "text": ..., "rank": ...}}),
}
OTHER_WORDS = {"people": "no", "places": "yes"}


@pytest.fixture(scope="module")
def runs(shared_workshop: Workshop) -> Path:
    """A folder of finished runs of one model, of every task and some methods."""
    data = Path(shared_workshop.base["data"]["path"])
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "label": OTHER_WORDS[row["label"]]}) for row in rows]
    (data / "other_words.jsonl").write_text("\n".join([*lines, json.dumps({"text": "w7", "label": "maybe"})]))
    (shared_workshop.folder / "served").mkdir()
    for name, sections in RUNS.items():
        more: Sections = IN_WORDS if name in ("words", "generation", "other_words") else {}
        if name == "other_words":
            more = {**more, "data": {"train": "other_words.jsonl"}}
        shared_workshop.train(f"served/{name}", *sections, QUICK, more)
    return shared_workshop.folder / "served"


def question(name: str, text: str) -> dict[str, Any]:
    return {"adapter": name, "texts": [text], **({"text_pairs": ["w40 w41"]} if name == "pair" else {})}


@pytest.fixture(scope="module")
def alone(runs: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(adapter, text) -> what it shows, read alone."""
    found = {}
    for name in RUNS:
        shelf = Shelf({name: runs / name}, ONE_RANK)
        for text in TEXTS:
            item = ask(shelf, shelf[name], text, "w40 w41" if name == "pair" else None, "text", None)
            (found[name, text],) = read(shelf, [item])
    return found


def close(one: Any, other: Any) -> bool:
    """The same, but for the rounding of numbers that were read in another batch."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    return bool(one == pytest.approx(other, abs=1e-5)) if isinstance(one, float) else bool(one == other)


# -- the model's side -------------------------------------------------------------------------------------------


def test_an_adapter_shows_what_predict_shows(
    runs: Path, alone: dict[tuple[str, str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in RUNS:
        pairs = [part for _ in TEXTS for part in ("--text-pair", "w40 w41")] if name == "pair" else []
        texts = [part for text in TEXTS for part in ("--text", text)]
        capsys.readouterr()
        assert main(["predict", str(runs / name), *texts, *pairs, "--json"]) == 0
        for text, line in zip(TEXTS, capsys.readouterr().out.splitlines(), strict=True):
            predicted = {key: value for key, value in json.loads(line).items() if not key.startswith("text")}
            assert close(predicted, alone[name, text]), (name, text)


@pytest.mark.parametrize(
    "names",
    [
        ("token", "sequence", "pair", "regression", "several"),  # prefixes of one length
        ("prompt", "long_prompt", "head"),  # prompts of any length, and none
        ("words", "other_words"),  # the language model answers, with two and three rows a text
    ],
)
def test_one_pass_of_several_adapters_gives_each_its_own_answers(
    runs: Path, alone: dict[tuple[str, str], dict[str, Any]], names: Sequence[str]
) -> None:
    shelf = Shelf({name: runs / name for name in names}, ONE_RANK)
    asked = [(name, text) for text in TEXTS for name in names]
    items = [ask(shelf, shelf[n], text, "w40 w41" if n == "pair" else None, "text", None) for n, text in asked]
    assert len({kind(item) for item in items}) == 1
    for (name, text), found in zip(asked, read(shelf, items), strict=True):
        assert close(alone[name, text], found), (name, text)
        others = [alone[other, text] for other in names if other != name]
        assert not any(close(found, other) for other in others)  # so a mix-up would be seen


def test_what_waits_is_read_together_and_a_text_that_fails_fails_alone(runs: Path) -> None:
    shelf = Shelf({"sequence": runs / "sequence", "token": runs / "token", "prompt": runs / "prompt"}, ONE_RANK)
    batches: list[list[str]] = []
    reader = Reader(shelf, 6, 4, lambda items, _: batches.append([item.served.name for item in items]))
    begun, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        goes_on.wait(60)

    def items(*names: str) -> list[Item]:
        return [ask(shelf, shelf[name], "w1 w2", None, "text", None) for name in names]

    reader.start()
    held = reader.do(hold)
    assert begun.wait(60)
    waiting = items("sequence", "prompt", "token", "sequence", "prompt", "sequence")
    waiting[3].rows = [type(waiting[3].rows[0])(0, [10**6], None, 0, "")]  # no such token
    reader.ask(waiting)
    with pytest.raises(Full):
        reader.ask(items("token"))
    goes_on.set()
    held.result(60)
    assert [type(one.answer.exception(60)) for one in waiting] == [type(None)] * 3 + [NotAnswered] + [type(None)] * 2
    reader.stop()
    reader.join(60)
    assert batches == [["sequence", "token", "sequence", "sequence"], ["prompt", "prompt"]]


def test_an_adapter_of_another_model_is_refused_by_name(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: str) -> str:
        assert main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    first = f"--adapter=films={runs / 'sequence'}"
    other = tmp_path / "other"
    shutil.copytree(runs / "token" / "adapter", other)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text())
    recipe["model"]["name_or_path"] = "embedded:llama"
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = refusal(first, f"--adapter=ner={other}")
    assert f"--adapter ner={other}: model.name_or_path is 'embedded:llama', and" in said
    # A model of the same name, and yet another one.
    recipe["model"]["name_or_path"] = str(
        yaml.safe_load((runs / "token" / "recipe.yaml").read_text())["model"]["name_or_path"]
    )
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = json.loads((other / "adapter.json").read_text())
    card["belongs_to"]["model's configuration"] = "0123456789abcdef"
    (other / "adapter.json").write_text(json.dumps(card))
    said = refusal(first, f"--adapter=ner={other}")
    assert "the fingerprint of the model's configuration is '0123456789abcdef', and" in said
    # Alone it is held against the model itself.
    assert "model's configuration is '0123456789abcdef' there" in refusal(f"--adapter=ner={other}")
    said = refusal(first, f"--adapter=ner={runs / 'token'}", "--adapter=x=nowhere")
    assert "nowhere: no trained adapter here" in said
    said = refusal(f"--adapter=one={runs / 'lora'}", f"--adapter=two={runs / 'ia3'}")
    assert "ia3 of two is inside the model's own modules, and lora cannot be there too" in said
    assert "is given twice" in refusal(first, first)
    assert "must be NAME=FOLDER" in refusal(f"--adapter={runs / 'token'}")
    assert "'a b' is no name for an adapter" in refusal(f"--adapter=a b={runs / 'token'}")


# -- over HTTP --------------------------------------------------------------------------------------------------


class Server:
    """`sktune serve` in a process of its own."""

    def __init__(self, log: Path, *arguments: str, **variables: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "sktune", "serve", *arguments, "--port", "0"]
        with log.open("wb") as handle:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=handle, env={**_environment(), **variables}, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), log.read_text()
        self.address = line.split()[-1]

    def call(
        self, path: str, body: Any = None, *, token: str | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """(status, what it says)."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as found:
                status, raw = found.status, found.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    started: list[Server] = []

    def begin(*arguments: str, **variables: str) -> Server:
        started.append(Server(tmp_path_factory.mktemp("server") / "log", *arguments, **variables))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.process.kill()


@pytest.fixture(scope="module")
def server(serve: Serve, runs: Path) -> Server:
    """All runs but one at once, with small limits."""
    adapters = [f"--adapter={name}={runs / name}" for name in RUNS if name != "ia3"]
    return serve(*adapters, "--max-body=4000", "--max-texts=4", "--max-characters=100")


def test_requests_at_once_are_answered_each_by_its_adapter(
    server: Server, alone: dict[tuple[str, str], dict[str, Any]]
) -> None:
    generator = random.Random(3)
    names = [name for name in RUNS if name != "ia3"]
    asked = [(generator.choice(names), generator.choice(TEXTS)) for _ in range(150)]
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda one: server.call("/predict", question(*one)), asked))
    for (name, text), (status, said) in zip(asked, found, strict=True):
        assert status == 200, said
        assert said["adapter"] == name
        assert said["notes"] == []
        assert close(alone[name, text], said["answers"][0]), (name, text)
    _, metrics = server.call("/metrics")
    counts = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line[0] != "#"
    }
    asked_of = [name for name, _ in asked].count("token")
    assert counts['sktune_requests_total{adapter="token",status="200"}'] == asked_of
    assert counts['sktune_texts_total{adapter="token"}'] == asked_of
    assert (
        counts["sktune_batch_adapters_count"] > counts['sktune_batch_adapters_bucket{le="1.0"}']
    )  # passes were shared
    assert counts["sktune_waiting_texts"] == 0


def test_several_texts_words_and_notes(server: Server, alone: dict[tuple[str, str], dict[str, Any]]) -> None:
    status, said = server.call("/predict", {"adapter": "token", "texts": [TEXTS[0], TEXTS[2].split()]})
    assert status == 200
    assert close(said["answers"], [alone["token", TEXTS[0]], alone["token", TEXTS[2]]])
    _, said = server.call("/predict", {"adapter": "sequence", "texts": ["", "w1 " * 33]})
    assert said["notes"] == ["texts.0: 1 of 1 texts are empty"]
    _, said = server.call("/predict", {"adapter": "generation", "texts": [TEXTS[0]], "max_new_tokens": 1})
    whole = alone["generation", TEXTS[0]]["generated"]
    assert said["answers"] == [{"generated": whole.split()[0]}]


def test_what_cannot_be_answered_is_refused_with_the_reason(server: Server) -> None:
    def refused(body: Any, status: int, words: str) -> None:
        got, said = server.call("/predict", body)
        assert (got, words in said["detail"]) == (status, True), said

    texts = ["w1"]
    refused({"adapter": "none", "texts": texts}, 404, "there is no adapter 'none'; there are: token, sequence")
    refused({"texts": texts}, 404, "name an adapter")
    refused({"adapter": "token", "texts": []}, 422, "texts: ")
    refused({"adapter": "token", "texts": texts, "temperature": 1}, 422, "temperature: ")
    refused({"adapter": "token", "texts": "w1"}, 422, "texts: ")
    refused({"adapter": "token", "texts": ["  "]}, 422, "texts.0: has no words")
    refused({"adapter": "token", "texts": texts * 5}, 422, "5 are too many at once; allowed: 4")
    refused({"adapter": "token", "texts": ["w1", "w" * 101]}, 422, "texts.1: 101 characters are too many; allowed: 100")
    refused({"adapter": "pair", "texts": texts}, 422, "texts.0: pair reads pairs")
    refused({"adapter": "pair", "texts": texts, "text_pairs": []}, 422, "0 second texts for 1 texts")
    refused({"adapter": "token", "texts": texts, "text_pairs": texts}, 422, "token reads single texts")
    refused({"adapter": "sequence", "texts": [["w1"]]}, 422, "sequence reads a text, not a list of words")
    refused({"adapter": "token", "texts": texts, "max_new_tokens": 1}, 422, "token writes nothing")
    refused({"adapter": "generation", "texts": texts, "max_new_tokens": 4}, 422, "generation writes 3 at most")
    refused(b'{"adapter": "token", "texts": ["\\ud800"]}', 422, "texts.0: holds half of a character")
    refused(b"{", 422, "JSON")
    refused({"adapter": "token", "texts": ["w" * 5000]}, 413, "larger than 4000 bytes")
    assert server.call("/adapters/token", method="DELETE")[0] == 403  # there is no token


def test_a_body_without_a_length_is_cut_off_too(server: Server) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(5)))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_the_description_has_examples_of_every_task_that_are_as_answers_are(
    server: Server, alone: dict[tuple[str, str], dict[str, Any]]
) -> None:
    _, described = server.call("/openapi.json")
    route = described["paths"]["/predict"]["post"]
    asked = route["requestBody"]["content"]["application/json"]["examples"]
    answered = route["responses"]["200"]["content"]["application/json"]["examples"]
    assert {name.split()[0] for name in asked} == set(ALL_TASKS)
    assert asked.keys() == answered.keys()
    _, adapters = server.call("/adapters")
    forms: dict[str, set[frozenset[str]]] = {}
    for one in adapters:
        forms.setdefault(one["task"], set()).add(frozenset(alone[one["name"], TEXTS[0]]))
    for name, example in answered.items():
        (shown,) = example["value"]["answers"]
        assert frozenset(shown) in forms[name.split()[0]], name
        assert example["value"].keys() == {"adapter", "answers", "notes"}
    assert {one["name"]: one["size"] for one in adapters}["head"] == 4 * (64 * 5 + 5 + 64)  # weights, bias, centre


def test_with_a_token_adapters_come_and_go(
    serve: Serve, runs: Path, tmp_path: Path, alone: dict[tuple[str, str], dict[str, Any]]
) -> None:
    (tmp_path / "link").symlink_to(runs / "token")
    shutil.copytree(runs / "lora", tmp_path / "in" / "lora")
    shutil.copytree(runs / "token" / "adapter", tmp_path / "in" / "other")
    shutil.copytree(runs / "generation", tmp_path / "in" / "generation")
    recipe = yaml.safe_load((tmp_path / "in" / "other" / "recipe.yaml").read_text())
    recipe["model"]["name_or_path"] = "embedded:llama"
    (tmp_path / "in" / "other" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "link")
    server = serve(
        f"--adapter=films={runs / 'sequence'}", "--adapters-folder", str(tmp_path / "in"), SKTUNE_SERVE_TOKEN=TOKEN
    )
    body = question("lora", TEXTS[0])
    assert server.call("/health")[0] == 200
    assert server.call("/")[0] == 200
    for path in ("/adapters", "/metrics", "/openapi.json"):
        assert server.call(path)[0] == server.call(path, token="wrong-horse")[0] == 401
        assert server.call(path, token=TOKEN)[0] == 200
    assert server.call("/predict", body)[0] == 401
    assert server.call("/adapters/lora", {"folder": "lora"}, method="PUT")[0] == 401
    assert server.call("/predict", body, token=TOKEN)[0] == 404

    def add(name: str, folder: str) -> tuple[int, Any]:
        return server.call(f"/adapters/{name}", {"folder": folder}, method="PUT", token=TOKEN)

    for outside in ("..", "link", str(runs / "token"), "../in/../link", "x\x00"):
        assert add("lora", outside)[0] == 403, outside
    status, said = add("lora", "other")
    assert status == 422
    assert "model.name_or_path is 'embedded:llama', and" in said["detail"]
    status, said = add("written", "generation")
    assert status == 422
    assert "its language model's own head, which was not loaded" in said["detail"].replace(
        "the language", "its language"
    )
    assert add("lora", "nowhere")[0] == add("a%20b", "lora")[0] == 422
    status, said = add("lora", "lora")
    assert (status, said["method"]) == (201, "lora")
    assert add("lora", "lora")[0] == 409
    assert add("again", "lora")[0] == 201  # in the same layers of peft
    again = server.call("/predict", question("again", TEXTS[0]), token=TOKEN)[1]["answers"]
    assert close(again, [alone["lora", TEXTS[0]]])
    assert server.call("/adapters/again", method="DELETE", token=TOKEN)[0] == 204
    assert close(server.call("/predict", body, token=TOKEN)[1]["answers"], [alone["lora", TEXTS[0]]])
    both = server.call("/predict", question("films", TEXTS[0]), token=TOKEN)[1]["answers"]
    assert close(both, [alone["sequence", TEXTS[0]]])  # beside the layers of the other one
    assert server.call("/adapters/lora", method="DELETE", token=TOKEN)[0] == 204
    assert server.call("/adapters/lora", method="DELETE", token=TOKEN)[0] == 404
    assert server.call("/predict", body, token=TOKEN)[0] == 404
    assert add("lora", "lora")[0] == 201  # the layers were taken out
    assert close(server.call("/predict", body, token=TOKEN)[1]["answers"], [alone["lora", TEXTS[0]]])
    assert server.stop() == 0
    assert TOKEN not in server.log.read_text()
    assert TOKEN not in server.process.stdout.read()  # type: ignore[union-attr]


def test_a_stop_finishes_what_is_under_way(serve: Serve, runs: Path) -> None:
    server = serve(f"--adapter=writes={runs / 'generation'}", "--batch-size=1")
    texts = [random.Random(i).choice(TEXTS) for i in range(100)]
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(server.call, "/predict", {"texts": texts})
        while server.call("/health")[1]["waiting"] < 50:
            assert not asked.done()
        assert server.stop() == 0
        status, said = asked.result()
    assert status == 200
    assert len(said["answers"]) == len(texts)
    assert server.log.read_text().count("Traceback") == 0


def test_a_full_queue_says_come_again(runs: Path) -> None:
    shelf = Shelf({"sequence": runs / "sequence"}, ONE_RANK)
    reader = Reader(shelf, 2, 8, lambda *_: None)
    app = build_app(shelf, reader, Metrics(shelf, lambda: reader.waiting), Limits(texts=2, characters=10))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        thread = threading.Thread(target=here.run, args=([listener],), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
        data, kind_of = json.dumps({"texts": ["w1", "w2"]}).encode(), {"Content-Type": "application/json"}
        with ThreadPoolExecutor(1) as client:
            asked = client.submit(urllib.request.urlopen, urllib.request.Request(address, data, kind_of), timeout=60)
            while reader.waiting < 2:  # it waits: nobody reads yet
                assert not asked.done()
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(address, data, kind_of), timeout=60)
            assert refused.value.code == 503
            assert refused.value.headers["Retry-After"] == "1"
            reader.start()
            assert len(json.loads(asked.result().read())["answers"]) == 2
        here.should_exit = True
        thread.join(60)
        reader.stop()


def test_options_that_cannot_be(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = f"--adapter=films={runs / 'sequence'}"

    def refusal(*arguments: str) -> str:
        assert main(["serve", adapter, *arguments]) == 2
        return capsys.readouterr().err

    assert "set SKTUNE_SERVE_TOKEN, or give --token-file" in refusal("--adapters-folder", str(tmp_path))
    assert "there is no folder" in refusal("--adapters-folder", str(tmp_path / "none"))
    assert "could never wait in a --queue of 2" in refusal("--queue=2")
    assert "is no address of this machine" in refusal("--host=no.such.host.invalid")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another one, or 0 for any" in refusal(f"--port={taken.getsockname()[1]}")
    file = tmp_path / "token"
    assert f"{file} cannot be read as text" in refusal(f"--token-file={file}")
    file.write_text("short\n")
    said = refusal(f"--token-file={file}")
    assert "at least 8" in said
    assert "short" not in said
    monkeypatch.setenv("SKTUNE_SERVE_TOKEN", TOKEN)
    said = refusal(f"--token-file={file}")
    assert "both give a token" in said
    assert TOKEN not in said
    monkeypatch.setenv("WORLD_SIZE", "1")
    for name in [name for name in sys.modules if name.startswith(("prometheus_client", "sktune.serving"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "pip install 'sktune[serve]'" in refusal()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)")
def test_the_page_asks_and_shows(serve: Serve, runs: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    names = ("sequence", "pair", "token", "generation")
    server = serve(*(f"--adapter={name}={runs / name}" for name in names), f"--token-file={token}")
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.address)
        page.get_by_text("this server wants a token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_label("Token").blur()
        page.get_by_text("sequence_classification, sk_prefix: people, places").wait_for()
        page.get_by_label("Text", exact=True).fill("w1 w2 <b>w3</b>")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("label: ").wait_for()
        assert page.locator("meter").count() == 2
        page.get_by_label("Adapter").select_option("pair")
        page.get_by_label("Second text").fill("w4")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("same", exact=True).wait_for()
        page.get_by_label("Adapter").select_option("token")
        assert not page.get_by_label("Second text").is_visible()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text('words: ["w1","w2","<b>w3</b>"]').wait_for()  # shown as text
        if os.environ.get("SKTUNE_SCREENSHOTS"):
            page.screenshot(path=tmp_path / "page.png")
        context.close()
    assert {url.removeprefix(server.address).split("?")[0] for url in asked} <= {
        "/",
        "/adapters",
        "/predict",
        "/favicon.ico",
    }
    assert [line for line in said if "401" not in line and "favicon" not in line] == []
