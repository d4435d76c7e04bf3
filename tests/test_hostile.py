"""Files made by others: recipes that grow, adapters that are no numbers, pickles, code that comes with a model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_fixtures import TASKS, Workshop, tracked

from sktune.cli import main
from sktune.recipe import RecipeError, load_recipe

QUICK: dict[str, Any] = {
    "training": {"max_steps": 1, "warmup_steps": 0, "eval_steps": ...},
    "data": {"validation": None},
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def trained(workshop: Workshop, *changes: Any) -> Path:
    workshop.train("run", TASKS["sequence"], QUICK, *changes)
    return workshop.output("run")


# -- recipes ----------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 20,000 values"),
        ("a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)), "values"),
        ("a: " + "[" * 5000 + "]" * 5000, "more than 20 levels"),
        ("a: " + "{b: " * 5000 + "}" * 5000, "more than 20 levels"),
        ("a: " + "9" * 5000, "more than 40 characters"),
        ("a: 0x" + "f" * 5000, "more than 40 characters"),
        ("x" * 2**20 + ": 1", "larger than 1,048,576 bytes"),
        ("a: !!timestamp 9999-99-99", "which means nothing in a recipe"),
        ("a: !!int x", "which means nothing in a recipe"),
        ("a: &a [*a]", "contains itself"),
    ],
)
def test_a_recipe_that_grows_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(file)
    assert len(str(caught.value)) < 1000


def test_an_endless_file_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe("/dev/zero")


def test_aliases_within_bounds_are_read(workshop: Workshop) -> None:
    file = workshop.write("run")
    text = (
        file.read_text(encoding="utf-8")
        .replace("eval_steps: 4", "eval_steps: &n 4")
        .replace("max_steps: 8", "max_steps: *n")
    )
    file.write_text(text, encoding="utf-8")
    assert load_recipe(file).training.max_steps == 4


# -- adapters ---------------------------------------------------------------------------------------------------

CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""


def test_an_adapter_makes_no_code_of_a_model_run(
    workshop: Workshop, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = trained(workshop)
    model, mark = tmp_path / "own_model", tmp_path / "ran"
    shutil.copytree(model_folder, model)
    (model / "own.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    recipe = output / "adapter" / "recipe.yaml"
    recipe.write_text(
        recipe.read_text()
        .replace(str(model_folder), str(model))
        .replace("trust_remote_code: false", "trust_remote_code: true")
    )
    assert "trust_remote_code: true" in recipe.read_text()
    for command in (("predict", output, "--text", "w1"), ("evaluate", output)):
        assert "a folder is not trusted with that" in refused(capsys, *command)
        assert not mark.exists()
    main(["predict", str(output), "--text", "w1", "model.trust_remote_code=true"])
    assert mark.exists()


def test_an_adapter_recipe_reads_no_other_file(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    output = trained(workshop)
    recipe = output / "adapter" / "recipe.yaml"
    recipe.write_text("extends: ../../elsewhere.yaml\n" + recipe.read_text())
    assert "extends other files" in refused(capsys, "predict", output, "--text", "w1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_no_number_is_refused_by_its_tensor(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    output = trained(workshop)
    file = output / "adapter" / "adapter.safetensors"
    weights = load_file(file)
    weights["head.classifier.weight"][0, 3] = value
    save_file(weights, file)
    message = refused(capsys, "predict", output, "--text", "w1")
    assert "1 of 128 numbers of the tensor head.classifier.weight" in message
    weights["head.classifier.weight"] = torch.zeros(2, 64, dtype=torch.int8)
    save_file(weights, file)
    assert "torch.int8" in refused(capsys, "evaluate", output)


def test_a_pickle_by_another_name_is_one_line(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    output = trained(workshop)
    file = output / "adapter" / "adapter.safetensors"
    torch.save({"a": torch.zeros(1)}, file)
    message = refused(capsys, "predict", output, "--text", "w1")
    assert "is a pickle under another name" in message
    assert message.count("\n") == 1
    file.write_bytes(pickle.dumps({"a": 1}))
    assert "is a pickle under another name" in refused(capsys, "predict", output, "--text", "w1")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ('{"labels": "abc"}', "labels must be null or a list"),
        ('{"labels": [1, 2]}', "labels must be null or a list"),
        ('{"labels": ["a", "a"]}', "labels must be null or a list"),
        ('{"labels": []}', "labels must be null or a list"),
        ("{}", "labels must be null or a list"),
        ("[" * 100_000, "brackets inside each other"),
        ('{"labels": ' + "9" * 5000 + "}", "is no JSON"),
        ("[]", "is no JSON object"),
        ("\x00", "is no JSON"),
    ],
)
def test_a_card_that_no_run_has_written_is_refused(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path, card: str, words: str
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(workshop.write("run", TASKS["sequence"]), folder / "recipe.yaml")
    (folder / "adapter.json").write_text(card, encoding="utf-8")
    assert words in refused(capsys, "predict", folder, "--text", "w1")


# -- secrets ----------------------------------------------------------------------------------------------------


def test_a_password_in_an_address_is_written_nowhere(
    workshop: Workshop,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sktune.tracking.tracker.FINISH_SECONDS", 0.0)
    uri = "http://me:se@cret@127.0.0.1:9/?token=tok123"
    recipe = workshop.write(
        "run",
        TASKS["sequence"],
        QUICK,
        tracked(workshop.folder / "x.db"),
        {"tracking": {"tracking_uri": uri, "tags": {"from": uri}}},
    )
    assert main(["train", str(recipe)]) == 0
    out, err = capsys.readouterr()
    output = workshop.output("run")
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "run.json"} <= {path.name for path in files}
    found = [path for path in files if any(secret in path.read_bytes() for secret in (b"cret", b"tok123"))]
    assert found == []
    assert not any("cret" in text or "tok123" in text for text in (out, err, caplog.text))
    # What was written is no address, and says so.
    again = refused(capsys, "train", output / "recipe.yaml", "output.dir=" + str(workshop.output("again")))
    assert "whose password was not written down" in again
