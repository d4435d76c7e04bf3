"""What the tests of training share: a tiny saved model, small data files, recipes, and real processes.

`conftest.py` makes it known to every test module; the session fixtures are made once
for all of them. Everything runs on the CPU, also where there is a GPU, since results are compared exactly.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import TEXT, tiny_network, tiny_tokenizer

from sktune.distributed.ranks import Ranks
from sktune.model.tuned_model import fold_centre
from sktune.recipe import load_recipe_document
from sktune.training.checkpoint import checkpoint_path, list_checkpoints
from sktune.training.run import train

ROOT = Path(__file__).resolve().parents[1]
ONE_RANK = Ranks(0, 0, 1, torch.device("cpu"), launched=False)
BITS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True},
}

# -- data -------------------------------------------------------------------------------------------------------

PEOPLE, PLACES = range(0, 10), range(10, 20)
TRAIN, VALIDATION, TEST = 22, 17, 13
"""Rows of the splits: 22 leaves 2 of a batch of 4, and 2 ranks divide neither 17 nor 13."""


def _sentence(generator: random.Random) -> list[int]:
    return [generator.randrange(30) for _ in range(generator.choice([1, 2, 3, 5, 8, 13]))]


def _tag(word: int) -> str:
    return "B-PER" if word in PEOPLE else "B-LOC" if word in PLACES else "O"


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every task: words w0 to w9 are people, w10 to w19 places; sentences of 1 to 13 words."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(5)
    for split, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        sentences = [_sentence(generator) for _ in range(rows)]
        (folder / f"{split}.conll").write_text(
            "\n".join("".join(f"w{word} {_tag(word)}\n" for word in words) for words in sentences), encoding="utf-8"
        )
        texts, pairs = [], []
        for words in sentences:
            text = " ".join(f"w{word}" for word in words)
            about = "people" if sum(word in PEOPLE for word in words) else "places"
            mean = sum(words) / len(words) / 30
            kinds = [kind for kind, of_kind in (("people", PEOPLE), ("places", PLACES)) if {*of_kind} & {*words}]
            row = {"text": text, "label": about, "score": mean, "answer": f"w{words[0]}", "kinds": kinds}
            texts.append(row)
            label, second = generator.choice([("same", text), ("other", "w40 w41")])
            pairs.append({"premise": text, "hypothesis": second, "label": label})
        _write_rows(folder / f"{split}.jsonl", texts)
        _write_rows(folder / f"pairs_{split}.jsonl", pairs)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of three layers, 64 wide, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_network("llama", language_model=True).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# -- recipes ----------------------------------------------------------------------------------------------------

Sections = dict[str, dict[str, Any]]

JSONL: dict[str, Any] = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
TASKS: dict[str, Sections] = {
    "token": {},
    "sequence": {"task": {"name": "sequence_classification"}, "data": JSONL},
    "pair": {
        "task": {"name": "pair_classification"},
        "data": {
            **{split: f"pairs_{file}" for split, file in JSONL.items()},
            "text_column": "premise",
            "text_pair_column": "hypothesis",
        },
    },
    "regression": {"task": {"name": "regression"}, "data": {**JSONL, "label_column": "score"}},
    "several": {"task": {"name": "multi_label"}, "data": {**JSONL, "label_column": "kinds"}},
    "words": {
        "task": {"name": "causal_lm", "label_words": {"people": "w20 w21", "places": "w22"}},
        "data": JSONL,
        "training": {"head_learning_rate": ...},
    },
    "generation": {
        "task": {"name": "causal_lm", "max_new_tokens": 3},
        "data": {**JSONL, "target_column": "answer"},
        "training": {"head_learning_rate": ...},
    },
}


def merged(base: Sections, *changes: Sections) -> Sections:
    """The sections with later ones' fields over earlier ones'; a field changed to `...` is left out."""
    result = {name: dict(fields) for name, fields in base.items()}
    for sections in changes:
        for name, fields in sections.items():
            result[name] = {**result.get(name, {}), **fields}
    return {name: {k: v for k, v in fields.items() if v is not ...} for name, fields in result.items()}


@dataclass(frozen=True)
class Workshop:
    """Writes recipes over the tiny model and the small files, and runs them in this process."""

    folder: Path
    base: Sections

    def output(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, *changes: Sections) -> Path:
        """A recipe file with output.dir `<folder>/<name>`."""
        path = self.folder / f"{name}.yaml"
        sections = merged(self.base, {"output": {"dir": str(self.output(name))}}, *changes)
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    def train(self, name: str, *changes: Sections, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
        """Writes the recipe and trains it in this process, without a launcher; returns the summary."""
        return train(load_recipe_document(self.write(name, *changes), overrides), ONE_RANK)


def _workshop(folder: Path, model: Path, data: Path) -> Workshop:
    base: Sections = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "method": {"name": "sk_prefix", "text": TEXT, "rank": 4},
        "task": {"name": "token_classification"},
        "data": {
            "path": str(data),
            "train": "train.conll",
            "validation": "validation.conll",
            "test": "test.conll",
            "max_length": 48,
            "group_by_length": False,
        },
        "training": {
            "per_device_train_batch_size": 4,
            "max_steps": 8,
            "eval_steps": 4,
            "logging_steps": 1,
            "learning_rate": 2e-2,
            "head_learning_rate": 5e-2,
            "warmup_steps": 2,
            "save_total_limit": 9,
        },
        "distributed": {"timeout_seconds": 60},
        "tracking": {"enabled": False},
    }
    return Workshop(folder, base)


@pytest.fixture
def workshop(tmp_path: Path, model_folder: Path, data_folder: Path) -> Workshop:
    return _workshop(tmp_path, model_folder, data_folder)


@pytest.fixture(scope="session")
def shared_workshop(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, data_folder: Path) -> Workshop:
    return _workshop(tmp_path_factory.mktemp("runs"), model_folder, data_folder)


def tracked(database: Path) -> Sections:
    """Tracking in a sqlite file, with its artifacts beside it."""
    return {"tracking": {"enabled": True, "tracking_uri": f"sqlite:///{database}", "experiment_name": "tests"}}


# -- results ----------------------------------------------------------------------------------------------------

Points = dict[tuple[str, int], float]


def points(output: Path, prefix: str = "") -> Points:
    """(metric, step) -> value of `metrics.jsonl`, without speeds and the summary; every point is there once."""
    found: Points = {}
    for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry["metrics"].items():
            if name.startswith(("train/", "validation/")) and name.startswith(prefix):
                assert (name, entry["step"]) not in found
                found[name, entry["step"]] = float(value)
    return found


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter.safetensors")


def checkpoint_weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    """What trains, and the head's centre."""
    return load_file(checkpoint_path(output, step) / "adapter.safetensors")


def checkpoint_adapter(output: Path, step: int) -> dict[str, torch.Tensor]:
    """A checkpoint's weights as they would be saved in an adapter."""
    return fold_centre(checkpoint_weights(output, step))


def summary_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


def scores_of(summary: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in summary.items() if name.startswith(("validation/", "test/"))}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    return max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)


def assert_same_run(one: Path, other: Path) -> None:
    """The same curves, scores and weights, to the last bit."""
    assert points(one) == points(other)
    assert scores_of(summary_of(one)) == scores_of(summary_of(other))
    assert largest_difference(adapter(one), adapter(other)) == 0.0


def assert_close_run(one: Path, other: Path, relative: float = 1e-5) -> None:
    """The same curves, scores and weights, up to the rounding of sums taken in another order."""
    first, second = points(one), points(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        # A gradient's norm is a root of a sum over all parameters, each rounded.
        slack = 10 * relative if key[0] == "train/gradient_norm" else relative
        assert second[key] == pytest.approx(value, rel=slack, abs=relative), key
    assert scores_of(summary_of(other)) == pytest.approx(scores_of(summary_of(one)), rel=relative, abs=relative)
    scale = max((float(tensor.abs().max()) for tensor in adapter(one).values()), default=0.0)
    assert largest_difference(adapter(one), adapter(other)) <= 10 * relative * max(scale, 1.0)


def cut_back(output: Path, step: int, copy: Path) -> None:
    """Makes `copy` what `output` was when the run was killed just after its checkpoint of `step`."""
    shutil.copytree(output, copy)
    for later in list_checkpoints(copy):
        if later > step:
            shutil.rmtree(checkpoint_path(copy, later))
    assert list_checkpoints(copy)[-1] == step
    for name in ("adapter", "predictions", "figures"):
        shutil.rmtree(copy / name, ignore_errors=True)
    (copy / "summary.json").unlink()
    lines = (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (copy / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")


# -- processes --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def deepspeed_command(script: Path, *arguments: str | Path, ranks: int = 2) -> list[str]:
    """`deepspeed --num_gpus 2 SCRIPT ...`."""
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


def torchrun_command(script: Path, *arguments: str | Path) -> list[str]:
    """`torchrun --nproc_per_node 2 SCRIPT ...`."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


@dataclass
class Running:
    """A command in a process group of its own, its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """The started process and all its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def workers(self) -> dict[int, psutil.Process]:
        """Rank -> process, of those that train."""
        found = {}
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                # deepspeed's own launcher process names the script too, but has no rank.
                if "RANK" in process.environ() and any(part.endswith("train.py") for part in process.cmdline()):
                    found[int(process.environ()["RANK"])] = process
        return found

    def wait(self, seconds: float) -> int:
        """The exit status; everything is killed where it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output()[-3000:]}") from None

    def wait_for(self, path: Path, seconds: float = 120) -> None:
        """Until a file or folder exists."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert self.process.poll() is None, f"ended before {path.name}:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"no {path.name} in {seconds} s:\n{self.output()[-3000:]}"
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL to all of it, at once."""
        for process in reversed(self.family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Running]


def _environment() -> dict[str, str]:
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SKTUNE_DEBUG")
    inherited = {name: value for name, value in os.environ.items() if name not in launched}
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return inherited | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def _start(command: list[str], log: Path) -> Running:
    with log.open("wb") as handle:
        process = subprocess.Popen(
            command,
            stdout=handle,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,
            env=_environment(),
            start_new_session=True,
        )
    return Running(process, log)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts commands; whatever still runs at the end of the test is killed."""
    started: list[Running] = []

    def begin(command: list[str]) -> Running:
        started.append(_start(command, tmp_path / f"process{len(started)}.log"))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.kill()


# -- many short trainings on two ranks, in one launch -----------------------------------------------------------

STAGES = ("zero3", "zero2", "zero3_offload", None)
USER_STAGES = (1, 2)


def stage_name(stage: str | None) -> str:
    return stage or "replicas"


TWO_BY_TWO: Sections = {"training": {"per_device_train_batch_size": 2}}
SIX: Sections = {"training": {"per_device_train_batch_size": 2}}
"""A global batch of six on three ranks."""
EARLY: Sections = {
    # No F1 is better than another by 2, so the first evaluation stays the best one.
    "training": {"max_steps": 30, "eval_steps": 2, "early_stopping_patience": 2, "early_stopping_threshold": 2.0}
}
LONG: Sections = {
    "training": {"max_steps": 40, "eval_steps": 10, "save_steps": 5, "logging_steps": 5, "save_total_limit": 2}
}
"""Long enough to be killed in its middle."""
UNCLIPPED: Sections = {"training": {"max_grad_norm": None}}
DIVERGING: Sections = {
    # One update takes the weights out of range: they are finite, and the next loss is not.
    "training": {
        "learning_rate": 1e38,
        "head_learning_rate": 1e38,
        "adam_beta1": 0.0,
        "warmup_steps": 0,
        "save_steps": 1,
    }
}


NF4_IN_BF16: Sections = {"quantization": {"load_in_4bit": True}, "model": {"dtype": "bfloat16"}}
METHOD_SECTIONS: dict[str, Sections] = {
    "sk_prefix": {},
    "sk_prompt": {"method": {"name": "sk_prompt"}},
    "head_only": {"method": {"name": "head_only", "text": ..., "rank": ...}},
}
BASELINES: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 5},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "p_tuning": {"num_virtual_tokens": 5, "hidden_size": 8},
    "lora": {"rank": 2},
    "ia3": {},
    "llama_adapter": {"num_virtual_tokens": 5, "layers": 2},
    "bottleneck_adapter": {"rank": 2},
    "top_layers": {"layers": 1},
    "full": {},
    "prompt_based": {"template": "w30 {text} w31 {answer}", "demonstrations": 1, "layers": None},
    "in_context": {"template": "w30 {text} w31 {answer}", "demonstrations": 1, "choose": "similar"},
}
UNFROZEN = ("top_layers", "full", "prompt_based")
"""Train the model's own weights, so they are not to be quantized."""
WITH_TEMPLATE = ("prompt_based", "in_context")


def baseline(name: str) -> tuple[Sections, ...]:
    """The section of a method that SK-Tuning is compared with."""
    slow: Sections = {"training": {"learning_rate": 1e-3}} if name in UNFROZEN else {}
    task: Sections = TASKS["sequence"] if name in WITH_TEMPLATE else {}
    return {"method": {"text": ..., "rank": ..., "name": name, **BASELINES[name]}}, slow, task


SINGLE_QUANTIZATION = {"bnb_4bit_use_double_quant": False}
VARIANTS: dict[str, tuple[Sections, ...]] = {
    **{
        f"{method}-{bits}{'-checkpointing' if checkpointing else ''}": (
            METHOD_SECTIONS[method],
            {"quantization": quantization, "training": {"gradient_checkpointing": checkpointing}},
        )
        for method in METHOD_SECTIONS
        for bits, quantization in BITS.items()
        for checkpointing in (False, True)
    },
    **{name: baseline(name) for name in BASELINES},
    **{
        f"{name}-nf4-checkpointing": (
            *baseline(name),
            {"quantization": BITS["nf4"], "training": {"gradient_checkpointing": True}},
        )
        for name in BASELINES
        if name not in UNFROZEN
    },
    "bf16-4bit": (NF4_IN_BF16,),
    "bf16-4bit-checkpointing": (NF4_IN_BF16, {"training": {"gradient_checkpointing": True}}),
    "fp4-single": ({"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", **SINGLE_QUANTIZATION}},),
    "cut-prompt": ({"method": {"name": "sk_prompt", "cut_layer": 1}}, {"quantization": {"load_in_4bit": True}}),
    "trainable-text": (
        {"method": {"trainable_text": True, "semantics": "every_step"}},
        {"training": {"gradient_checkpointing": True}},
    ),
}
"""What else must not change under ZeRO-3: each is trained by replicas and by shards."""


def one_rank_runs(workshop: Workshop) -> None:
    """What the runs on two ranks are compared with."""
    for bits, quantization in BITS.items():
        workshop.train(f"one-4x1-{bits}", {"quantization": quantization})
        shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
        workshop.train(f"one-1x4-{bits}", {"quantization": quantization, "training": shape})
        six = {"per_device_train_batch_size": 6}
        workshop.train(f"one-six-{bits}", {"quantization": quantization, "training": six})
    for task in ("regression", "words"):
        workshop.train(f"one-{task}", TASKS[task])
    workshop.train("one-early", EARLY)
    workshop.train("one-unclipped", UNCLIPPED)


def two_rank_jobs(workshop: Workshop) -> list[dict[str, Any]]:
    """Jobs of `train_several.py`."""
    jobs: list[dict[str, Any]] = []

    def add(name: str, *changes: Sections, cut: tuple[str, int] | None = None) -> None:
        job: dict[str, Any] = {"name": name, "recipe": str(workshop.write(name, *changes))}
        if cut is not None:
            job["cut"] = {"output": str(workshop.output(cut[0])), "step": cut[1], "copy": str(workshop.output(name))}
        jobs.append(job)

    resume: Sections = {"training": {"resume": "auto"}}
    for bits, quantization in BITS.items():
        sections = merged({"quantization": quantization}, TWO_BY_TWO)
        for stage in STAGES:
            name = f"two-{stage_name(stage)}-{bits}"
            add(name, sections, {"distributed": {"deepspeed": stage}})
            if bits == "none" or stage == "zero3":
                add(f"{name}-resumed", sections, resume, {"distributed": {"deepspeed": stage}}, cut=(name, 4))
        shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
        add(f"two-1x2-{bits}", sections, {"training": shape})
        add(f"grown-{bits}", sections, resume, cut=(f"one-4x1-{bits}", 4))
        add(f"two-six-{bits}", sections, {"training": {"per_device_train_batch_size": 3}})
    for choice in (False, "auto"):
        add(f"two-shards-{str(choice).lower()}", NF4_IN_BF16, TWO_BY_TWO, {"distributed": {"shard_backbone": choice}})
    for stage_number in USER_STAGES:
        file = workshop.folder / f"user{stage_number}.json"
        zero = {"stage": stage_number, "reduce_bucket_size": "auto"}
        batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
        config = {"gradient_clipping": "auto", **batch, "zero_optimization": zero}
        file.write_text(json.dumps(config), encoding="utf-8")
        own: Sections = {"distributed": {"deepspeed": str(file)}}
        add(f"user{stage_number}", TWO_BY_TWO, own)
        add(f"user{stage_number}-resumed", TWO_BY_TWO, own, resume, cut=(f"user{stage_number}", 4))
    for variant, changes in VARIANTS.items():
        for stage in ("zero3", None):
            add(f"two-{stage_name(stage)}-{variant}", *changes, TWO_BY_TWO, {"distributed": {"deepspeed": stage}})
    for name in BASELINES:
        if name == "in_context":
            continue  # leaves no checkpoint
        add(f"resumed-{name}", *baseline(name), TWO_BY_TWO, resume, cut=(f"two-zero3-{name}", 4))
    for bits, quantization in BITS.items():
        add(f"watched-{bits}", {"quantization": quantization}, TWO_BY_TWO)
        jobs[-1]["watch"] = True
    add("two-forgetful", NF4_IN_BF16, TWO_BY_TWO)
    jobs[-1]["forgetful"] = True
    add("two-untried-nf4", {"quantization": BITS["nf4"], "model": {"check_step_zero": False}}, TWO_BY_TWO)
    add("two-early", EARLY, TWO_BY_TWO)
    add("two-diverging", TWO_BY_TWO, DIVERGING)
    add("two-long", TWO_BY_TWO, LONG)
    add("two-unclipped", TWO_BY_TWO, UNCLIPPED)
    for task in ("4x1-none", "regression", "words"):
        jobs.append({"name": f"evaluation-{task}", "evaluate": str(workshop.output(f"one-{task}")), "split": "test"})
    return jobs


def three_rank_jobs(workshop: Workshop) -> list[dict[str, Any]]:
    """Jobs for as many ranks as neither the rows nor most of the weights can be divided by."""
    return [
        {"name": f"three-{bits}", "recipe": str(workshop.write(f"three-{bits}", SIX, {"quantization": quantization}))}
        for bits, quantization in BITS.items()
    ]


@dataclass(frozen=True)
class SeveralRanks:
    """Results of the jobs: of each rank, by job name, what `train` returned (`result`) or raised (`error`)."""

    workshop: Workshop
    results: list[dict[str, dict[str, Any]]]

    def result(self, name: str) -> dict[str, Any]:
        outcome = self.results[0][name]
        assert "error" not in outcome, outcome["error"]
        return outcome["result"]

    def output(self, name: str) -> Path:
        """Output folder of a job that went well."""
        if name in self.results[0]:
            self.result(name)
        return self.workshop.output(name)


@pytest.fixture(scope="session")
def two_ranks(shared_workshop: Workshop) -> SeveralRanks:
    """One-rank runs in this process, then many runs on two ranks, started once by `deepspeed`."""
    one_rank_runs(shared_workshop)
    return run_jobs(shared_workshop, two_rank_jobs(shared_workshop), 2)


@pytest.fixture(scope="session")
def three_ranks(shared_workshop: Workshop) -> SeveralRanks:
    """Some runs on three ranks."""
    return run_jobs(shared_workshop, three_rank_jobs(shared_workshop), 3)


def run_jobs(workshop: Workshop, jobs: list[dict[str, Any]], ranks: int) -> SeveralRanks:
    """Runs jobs one after the other in one launch; one that fails ends it, and the jobs after it get another."""
    results: list[dict[str, dict[str, Any]]] = [{} for _ in range(ranks)]
    launches = 0
    while jobs:
        launches += 1
        file = workshop.folder / f"jobs{ranks}-{launches}.json"
        file.write_text(json.dumps(jobs), encoding="utf-8")
        command = deepspeed_command(ROOT / "tests" / "train_several.py", file, ranks=ranks)
        running = _start(command, file.with_suffix(".log"))
        running.wait(1200)
        for rank in range(ranks):
            written = file.with_suffix(f".rank{rank}.json")
            results[rank] |= json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        finished = [all(job["name"] in result for result in results) for job in jobs]
        if running.process.returncode:
            # The last one begun, which not every rank may have reported.
            failed = finished.index(False) if False in finished else len(jobs) - 1
            reported = {name for result in results for name in result}
            begun = max((i for i, job in enumerate(jobs) if job["name"] in reported), default=failed)
            failed = min(failed, begun)
            for result in results:
                result.setdefault(jobs[failed]["name"], {"error": running.output()[-3000:]})
            finished = [i <= failed for i in range(len(jobs))]
        assert any(finished), running.output()[-5000:]
        jobs = [job for job, done in zip(jobs, finished, strict=True) if not done]
    return SeveralRanks(workshop, results)
