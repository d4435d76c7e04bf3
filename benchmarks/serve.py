"""A load test of `sktune serve` on loopback: eight adapters of one model against one, memory, and nothing mixed up.

    python benchmarks/serve.py [--requests 10000] [--small] [--output FILE]

The model is SmolLM2-135M in float32 (`sktune fetch smollm2 film_reviews`), the questions are sentences of film reviews,
one a request, over connections that stay open. Contestants, by turns, at 1, 8 and 32 clients: one adapter; eight whose
prefixes are as long, so that passes are shared; eight whose prefixes differ in length, which are read adapter by
adapter. Adapters are SK-Prefix after one step, then with weights of their own, drawn at random, and labels of their
own: every answer tells which adapter it came from, and is compared with what that adapter says of the sentence alone.
Memory is the slope of the server's own bytes over adapters that are added while it runs. `--small` is the miniature
that comes with sktune. Results go to benchmarks/results/serve.json; exit status 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from launching import RESULTS, ROOT, cpu_environment, facts, save
from safetensors.torch import load_file, save_file
from scipy.stats import theilslopes

CLIENTS = (1, 8, 32)
ADAPTERS = 8
LEAST_RATIO, MEMORY_TOLERANCE, CLOSE = 0.8, 0.1, 1e-3
ADDED = {False: 64, True: 24}
TOKEN = "benchmark-of-serve"
TEXT = "Classify the sentiment of the movie review as positive or negative. "
RECIPE = """
model: {name_or_path: MODEL, dtype: float32}
method: {name: sk_prefix, text: unset}
task: {name: sequence_classification}
data: {path: DATA, validation: null, max_length: 64, max_train_samples: 16}
training: {max_steps: 1, per_device_train_batch_size: 8}
distributed: {deepspeed: null}
tracking: {enabled: false}
output: {dir: unset, overwrite: true}
"""
Answer = dict[str, Any]


# -- adapters ---------------------------------------------------------------------------------------------------


def train(recipe: Path, output: Path, text: str) -> None:
    from sktune.distributed.ranks import Ranks
    from sktune.recipe import load_recipe_document
    from sktune.training.run import train as run

    loaded = load_recipe_document(recipe, [f"method.text={json.dumps(text.strip())}", f"output.dir={output}"])
    run(loaded, Ranks(0, 0, 1, torch.device("cpu"), launched=False))


def make_adapters(scratch: Path, small: bool) -> None:
    """`alike-0` ... whose prefixes are as long, `unlike-0` ... whose are not, and `added/0` ... for the memory."""
    model, data = ("embedded:llama", "embedded:sentiment") if small else ("embedded:smollm2", "embedded:film_reviews")
    recipe = scratch / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", model).replace("DATA", data), encoding="utf-8")
    for number in range(ADAPTERS):
        text = TEXT * 2 + "Look closely. " * number
        train(recipe, scratch / f"run-{number}", text)
        vary(scratch / f"run-{number}" / "adapter", scratch / f"unlike-{number}", number)
        vary(scratch / "run-0" / "adapter", scratch / f"alike-{number}", number)
    # As long as the miniature's 512 positions allow: beside a small adapter its Python objects would count.
    train(recipe, scratch / "run-long", TEXT * 21)
    for number in range(ADDED[small]):
        vary(scratch / "run-long" / "adapter", scratch / "added" / str(number), number)


def vary(source: Path, folder: Path, number: int) -> None:
    """A copy of an adapter with other weights and labels."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(number)
    weights = load_file(folder / "adapter.safetensors")
    for name, tensor in weights.items():
        scale = 1.0 if name.startswith("head.") else 0.02
        tensor += scale * torch.randn(tensor.shape, generator=generator)
    save_file(weights, folder / "adapter.safetensors")
    labels = [f"{number}-no", f"{number}-yes"]
    card = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    card["labels"] = card["belongs_to"]["labels"] = labels
    (folder / "adapter.json").write_text(json.dumps(card), encoding="utf-8")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["task"]["labels"] = labels
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


# -- a server and its clients -----------------------------------------------------------------------------------


class Server:
    """`sktune serve` in a process of its own."""

    def __init__(self, adapters: dict[str, Path], *arguments: str) -> None:
        given = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]
        command = [sys.executable, "-m", "sktune", "serve", *given, "--port", "0", "--quiet", *arguments]
        environment = {**cpu_environment(os.cpu_count() or 1), "SKTUNE_SERVE_TOKEN": TOKEN}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("serving "):
            raise RuntimeError(f"{command}: did not start")
        self.port = int(line.rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def bytes(self) -> int:
        """What the process alone would free."""
        return int(psutil.Process(self.process.pid).memory_full_info().uss)

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60):
            raise RuntimeError(f"the server ended with status {self.process.returncode}")


@contextmanager
def running(adapters: dict[str, Path], *arguments: str) -> Iterator[Server]:
    server = Server(adapters, *arguments)
    try:
        yield server
    finally:
        server.stop()


def call(connection: http.client.HTTPConnection, path: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    connection.request(method if body is not None else "GET", path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    raw = answer.read()
    return answer.status, json.loads(raw) if raw.startswith((b"{", b"[")) else raw.decode()


def asked(
    server: Server, questions: Sequence[tuple[str, str]], clients: int
) -> tuple[float, list[float], list[Answer]]:
    """(seconds of all, seconds of each, answers) of (adapter, text) questions, by so many clients at once."""
    seconds, answers = [math.nan] * len(questions), [Answer()] * len(questions)
    numbers, lock = iter(range(len(questions))), threading.Lock()
    failed: list[BaseException] = []

    def client() -> None:
        connection = server.connect()
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None or failed:
                    return
                adapter, text = questions[number]
                started = time.perf_counter()
                status, said = call(connection, "/predict", {"adapter": adapter, "texts": [text]})
                seconds[number] = time.perf_counter() - started
                if status != 200 or said["adapter"] != adapter:
                    raise RuntimeError(f"{adapter}: {status} {said}")
                (answers[number],) = said["answers"]
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - started, seconds, answers


def texts_of(count: int, recipe: Path) -> list[str]:
    """Different sentences."""
    from sktune.data import load_splits
    from sktune.recipe import load_recipe
    from sktune.tasks.task import build_task

    read = load_recipe(recipe, ["output.dir=unset", "data.test=test"])
    return list(dict.fromkeys(example.text for example in load_splits(read.data, build_task(read.task)).test or ()))[
        :count
    ]


# -- what is measured -------------------------------------------------------------------------------------------


def speed(scratch: Path, texts: Sequence[str], each: int, rounds: int) -> dict[str, Any]:
    """Requests a second and latencies of the contestants, by number of clients."""
    names = {"one adapter": ["alike-0"], **{
        f"eight adapters, {what}": [f"{kind}-{number}" for number in range(ADAPTERS)]
        for what, kind in (("prefixes as long", "alike"), ("prefixes of other lengths", "unlike"))
    }}  # fmt: skip
    found: dict[str, Any] = {}
    folders = {name: scratch / name for of in names.values() for name in of}
    with running(folders) as server:
        for clients in CLIENTS:
            taken: dict[str, list[tuple[float, list[float]]]] = {who: [] for who in names}
            for number in range(rounds + 1):
                for who, of in names.items():
                    count = each if number else max(clients, each // 4)
                    generator = random.Random(f"{who} {clients} {number}")
                    questions = [(of[i % len(of)], generator.choice(texts)) for i in range(count)]
                    all_of, seconds, _ = asked(server, questions, clients)
                    if number:  # the first round warms up
                        taken[who].append((count / all_of, seconds))
            for who, results in taken.items():
                seconds = sorted(second for _, one in results for second in one)
                rate = statistics.median(rate for rate, _ in results)
                found.setdefault(who, {})[str(clients)] = {
                    "requests_per_second": rate,
                    "rounds": [rate for rate, _ in results],
                    "p50_ms": 1000 * seconds[len(seconds) // 2],
                    "p99_ms": 1000 * seconds[math.ceil(0.99 * len(seconds)) - 1],
                }
    return found


def mixed_up(scratch: Path, texts: Sequence[str], requests: int) -> dict[str, Any]:
    """Answers of all adapters to many clients, each held against the adapter's answer to the text alone."""
    names = [f"{kind}-{number}" for kind in ("alike", "unlike") for number in range(ADAPTERS // 2)]
    generator, largest, wrong = random.Random(0), 0.0, 0
    with running({name: scratch / name for name in names}) as server:
        pairs = [(name, text) for name in names for text in texts]
        _, _, answers = asked(server, pairs, 1)
        alone = dict(zip(pairs, answers, strict=True))
        questions = [(generator.choice(names), generator.choice(texts)) for _ in range(requests)]
        _, _, found = asked(server, questions, 32)
        _, metrics = call(server.connect(), "/metrics")
    for question, answer in zip(questions, found, strict=True):
        expected = alone[question]["probabilities"]
        if answer["probabilities"].keys() != expected.keys():
            wrong += 1
            continue
        largest = max(largest, *(abs(answer["probabilities"][label] - expected[label]) for label in expected))
    counts = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line[0] != "#"
    }
    passes = counts["sktune_batch_adapters_count"]
    return {
        "requests": requests,
        "answered": len(found),
        "of_another_adapter": wrong,
        "largest_difference": largest,
        "passes": passes,
        "rows_of_a_pass": counts["sktune_batch_rows_sum"] / passes,
        "shared_passes": passes - counts['sktune_batch_adapters_bucket{le="1.0"}'],
    }


def memory(scratch: Path, texts: Sequence[str], small: bool) -> dict[str, Any]:
    """The server's own bytes for each adapter that is added, against what the adapter says that it holds."""
    first = {"first": scratch / "alike-0"}
    with running(first, "--adapters-folder", str(scratch / "added")) as server:
        connection = server.connect()
        points: list[tuple[int, int]] = []
        for number in range(ADDED[small]):
            status, said = call(connection, f"/adapters/added-{number}", {"folder": str(number)}, "PUT")
            if status != 201:
                raise RuntimeError(said)
            asked(server, [(f"added-{number}", texts[0])], 1)
            points.append((number, server.bytes()))
        size = said["size"]
    # Buffers that every adapter's loading uses again are there after the first ones. The median of the slopes between
    # any two of the others (Theil-Sen): now and then the allocator keeps, or gives back, some megabytes of scratch.
    counts, held = zip(*points[len(points) // 4 :], strict=True)
    slope = float(theilslopes(held, counts).slope)
    return {"adapter_bytes": size, "bytes_for_each": slope, "ratio": slope / size, "adapters": ADDED[small]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=400, help="requests of a round of a contestant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path, Sequence[str]], Any]] = {
        "speed": lambda scratch, texts: speed(scratch, texts, options.each, options.rounds),
        "mixed_up": lambda scratch, texts: mixed_up(scratch, texts, options.requests),
        "memory": lambda scratch, texts: memory(scratch, texts, options.small),
    }
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_adapters(scratch, options.small)
        texts = texts_of(64, scratch / "recipe.yaml")
        for name, part in parts.items():
            result[name] = part(scratch, texts)
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    result["bars"] = bars(result)
    result["environment"] = facts(("torch", "transformers", "fastapi", "uvicorn"))
    save(result, options.output)
    for bar in result["bars"]:
        print(f"{'holds' if bar['holds'] else 'DOES NOT HOLD'}: {bar['what']}: {bar['value']:.3g}")
    return int(not all(bar["holds"] for bar in result["bars"]))


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What has to hold."""
    speeds, mixed, held = result["speed"], result["mixed_up"], result["memory"]
    found = []
    for clients in map(str, CLIENTS):
        one = speeds["one adapter"][clients]["requests_per_second"]
        eight = speeds["eight adapters, prefixes as long"][clients]["requests_per_second"]
        what = f"eight adapters against one, requests a second, {clients} clients (at least {LEAST_RATIO})"
        found.append({"what": what, "value": eight / one, "holds": eight / one >= LEAST_RATIO})
    lost = mixed["requests"] - mixed["answered"] + mixed["of_another_adapter"]
    found.append({"what": f"lost or mixed up of {mixed['requests']}", "value": lost, "holds": lost == 0})
    what = f"largest difference from the answer alone (at most {CLOSE})"
    found.append({"what": what, "value": mixed["largest_difference"], "holds": mixed["largest_difference"] <= CLOSE})
    what = f"memory for each adapter, of its own bytes (1 +- {MEMORY_TOLERANCE})"
    found.append({"what": what, "value": held["ratio"], "holds": abs(held["ratio"] - 1) <= MEMORY_TOLERANCE})
    return found


if __name__ == "__main__":
    sys.exit(main())
