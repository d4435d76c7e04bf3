"""A method of another package: what docs/methods.md says is enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from other_packages import QUICKSTART, run, write_package
from safetensors.torch import load_file
from training_fixtures import Start, deepspeed_command

from sktune.registry import Registry

SHORT = (
    "method={name: soft_start, length: 3}",
    "training.max_steps=6",
    "training.warmup_steps=1",
    "training.eval_steps=3",
    "data.max_train_samples=48",
    "data.max_validation_samples=16",
    "data.max_test_samples=16",
    "tracking.enabled=false",
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The files of docs/methods.md, in a package of their own."""
    assert write_package("methods.md", tmp_path) == [
        "my_methods/soft_start/config.py",
        "my_methods/soft_start/module.py",
        "my_sktune.py",
    ]
    return tmp_path / "my_sktune.py"


def test_a_folder_and_a_line_are_enough_to_train_score_and_use_it(script: Path) -> None:
    output = script.parent / "run"
    trained = run(script, "train", QUICKSTART, f"output.dir={output}", *SHORT)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    embeddings = load_file(output / "adapter" / "adapter.safetensors")["method.embeddings"]
    assert embeddings.shape[0] == 3
    assert embeddings.std() > 0.025  # trained: the noise started at 0.02, and the rate is a multiple of it
    scored = run(script, "evaluate", str(output))
    assert scored.returncode == 0, scored.stderr
    found = json.loads((output / "evaluation" / "test.json").read_text(encoding="utf-8"))
    assert found["loss"] == pytest.approx(summary["test/loss"], abs=1e-6)


def test_its_mistakes_are_told_like_those_of_any_other(script: Path) -> None:
    def errors(method: str) -> str:
        done = run(script, "validate", QUICKSTART, f"method={method}")
        assert done.returncode == 1
        return done.stderr

    assert "method.length = 0" in errors("{name: soft_start, length: 0}")
    assert "did you mean method.length?" in errors("{name: soft_start, lenght: 3}")
    assert "is a field of soft_start, not of lora" in errors("{name: lora, length: 3}")
    assert "in_context, soft_start" in errors("{name: soft}")


def test_a_registry_takes_a_name_once_and_knows_the_nearest() -> None:
    registry = Registry("method", "module", {"lora": "sktune.methods.lora:Lora"})
    registry.add("ia3", "sktune.methods.ia3:IA3")
    registry.add("ia3", "sktune.methods.ia3:IA3")  # a module that is imported twice
    assert list(registry) == ["lora", "ia3"]
    assert registry.config("ia3")(target_modules=("k_proj",)) == registry.read(
        {"name": "ia3", "target_modules": ["k_proj"]}
    )
    for wrong, message in (
        (lambda: registry.add("lora", "mine:Lora"), "method 'lora' is already sktune.methods.lora:Lora"),
        (lambda: registry.add("mine", "mine.Lora"), "not of the form package:Class"),
        (lambda: registry.config("lorra"), r"unknown method 'lorra'; allowed: lora, ia3; did you mean lora\?"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.distributed
def test_it_trains_under_zero3_as_in_one_process(script: Path, start: Start) -> None:
    alone, shared = script.parent / "alone", script.parent / "shared"
    done = run(script, "train", QUICKSTART, f"output.dir={alone}", *SHORT)
    assert done.returncode == 0, done.stderr
    cut = ("training.per_device_train_batch_size=8", f"output.dir={shared}")
    command = deepspeed_command(script, "train", QUICKSTART, *SHORT, *cut)
    command.insert(command.index(str(script)), "--no_local_rank")
    running = start(command)
    assert running.wait(300) == 0, running.output()[-3000:]
    one, two = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (alone, shared))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
