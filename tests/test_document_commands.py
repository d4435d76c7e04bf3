"""The commands in the documents: each is understood, and runs on a model and data as small as can be.

Python in the documents runs in tests/test_python_document.py, tests/test_adding_a_method.py and
tests/test_adding_a_task.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sktune.cli import main
from sktune.cli.arguments import is_override, recipe_and_overrides
from sktune.cli.commands import sktune
from sktune.embedded import resolve
from sktune.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOT_RUN = {
    "bash launchers/": "sets up an environment; CI runs it (.ci/run)",
    "mlflow ui": "a server of MLflow",
    "hf download": "needs a model hub",
    "printf": "part of the tutorial, which runs",
    "eval ": "switches on completion, which tests/test_cli.py asks for its answers",
    "python benchmarks/": "takes hours; tests/test_benchmarks.py runs short forms",
    "vllm serve": "a server of vLLM; tests/test_export_vllm.py asks one where there is one",
    "python exported_vllm/client.py": "asks that server",
    "source ": "activates an environment",
    "docker": "needs Docker",
    "mlflow models serve": "a server of MLflow; tests/test_mlflow_model.py asks it",
    "curl ": "asks a server; tests/test_serve.py does",
    "python -m sktune.embedded.build": "rebuilds the miniature, which takes an hour",
}
"""What is no command of sktune, by its beginning, and why it is not run here."""
ONLY_UNDERSTOOD = {
    "serve ": "runs until it is stopped; tests/test_serve.py asks it",
    "fetch minilm": "needs a package index; tests/test_fetch.py has one of its own",
    "compare recipes/compare/": "takes hours; tests/test_compare.py runs small ones",
    "compare recipes/quickstart.yaml --methods sk_prefix,lora,head_only --seeds 3": "27 cells; a smaller one runs",
}
"""What is not run, by its beginning, and why.

Launchers are one process here; tests/test_distributed.py starts several.
"""
SMALL = """
model: {name_or_path: "embedded:llama", dtype: float32}
method: {name: sk_prefix, text: "Is the review good or bad?", rank: 4}
task: {name: sequence_classification}
data: {path: "embedded:sentiment", test: test, max_length: 24, max_train_samples: 32, max_validation_samples: 8,
       max_test_samples: 8}
training: {per_device_train_batch_size: 4, max_steps: 2, learning_rate: 1.0e-2}
distributed: {deepspeed: null}
tracking: {enabled: false}
output: {dir: runs/smollm2_film_reviews}
compare: {methods: {head_only: {}, sk_prefix: {}}}
"""
"""Stands for every recipe that is trained."""
TRAINED = {
    "smollm2_film_reviews": (),
    "sentiment": (),
    "smollm2_film_reviews_words": ("task={name: causal_lm, label_words: {negative: negative, positive: positive}}",),
    "smollm2_film_reviews_written": ("task={name: causal_lm}", "data.target_column=label"),
    "smollm2_film_reviews_prompt": (
        "method={name: sk_prompt, text: 'Is it good or bad?', rank: 4}",
        "task={name: causal_lm, label_words: {negative: negative, positive: positive}}",
    ),
    "ner": ("task={name: token_classification}", "data={path: embedded:newswire, max_train_samples: 32}"),
}
"""Runs that commands name -> what their recipe has besides."""
OWN_FILES = {"films.yaml"}
"""Recipes that the tutorial makes."""


def commands_of(document: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


COMMANDS = [pytest.param(line, id=f"{path.name}: {line[:60]}") for path in DOCUMENTS for line in commands_of(path)]


@pytest.mark.parametrize("line", COMMANDS)
def test_it_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line.startswith(tuple(NOT_RUN)):
        return
    monkeypatch.chdir(ROOT)
    words = words_of(line)
    assert words, f"neither a command of sktune nor in NOT_RUN: {line}"
    name, *arguments = words
    command = sktune.get_command(sktune.make_context("sktune", ["list"]), name)
    assert command is not None, name
    given = command.make_context(name, list(arguments)).params
    if name in ("train", "compare", "plan"):
        recipe, overrides = recipe_and_overrides(given["recipe"], given["arguments"])
        if recipe not in OWN_FILES:
            load_recipe(recipe, overrides)
    elif name == "validate":
        overrides = [one for one in given["arguments"] if is_override(one)]
        for pattern in given["arguments"]:
            if not is_override(pattern) and pattern not in OWN_FILES:
                files = list(ROOT.glob(pattern))
                assert files, pattern
                load_recipe(files[0], overrides)


def words_of(line: str) -> list[str]:
    """A command of sktune as its arguments, however it is started; empty for what is none."""
    found = re.search(
        r"(?:^|\s)(?:sktune|launchers/(?P<launcher>train|evaluate|predict|compare)\.py)\s(?P<rest>.*)", line
    )
    if line.startswith(tuple(NOT_RUN)) or found is None:
        return []
    return [*filter(None, [found["launcher"]]), *shlex.split(found["rest"], comments=True)]


def to_run() -> list[Any]:
    """Of all documents but the tutorial, whose commands run as one script below."""
    found = {}
    for path in DOCUMENTS:
        for words in map(words_of, commands_of(path) if path.name != "tutorial.md" else []):
            if words and not " ".join(words).startswith(tuple(ONLY_UNDERSTOOD)):
                found[tuple(words)] = pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")
    return list(found.values())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents have it: recipes, a model and data of one's own, a trained run and a comparison."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    shutil.copytree(resolve("embedded:llama"), folder / "models" / "Llama-2-7b")
    (folder / "my_folder").mkdir()
    for split in ("train", "dev"):
        rows = [{"text": text, "label": label} for text, label in (("a fine film", "good"), ("a dull one", "bad")) * 4]
        (folder / "my_folder" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with contextlib.chdir(folder):
        Path("reviews.csv").write_text("review\na fine film\n", encoding="utf-8")
        Path("news.conll").write_text("Peter B-PER\nspoke O\n\n", encoding="utf-8")
        for name, overrides in TRAINED.items():
            assert main(["train", "small.yaml", *overrides, f"output.dir=runs/{name}"]) == 0
        assert main(["compare", "small.yaml", "--output", "runs/three"]) == 0
    return folder


@pytest.mark.parametrize("words", to_run())
def test_it_runs(words: list[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    name, *arguments = words
    if name in ("train", "compare"):
        arguments = ["small.yaml" if one.startswith("recipes/") else one for one in arguments]
    if name == "train" and "--resume" not in arguments and not any(one.startswith("output.dir=") for one in arguments):
        arguments.append(f"output.dir={tmp_path / 'run'}")
    if name == "validate":
        arguments = [str(file) for one in arguments for file in (sorted(place.glob(one)) if "*" in one else [one])]
    assert main([name, *arguments]) == 0


SNIPPETS = [
    pytest.param(path, number, id=f"{path.name}: {number}")
    for path in DOCUMENTS
    for number in range(1, 1 + path.read_text(encoding="utf-8").count("\n```yaml\n"))
]


@pytest.mark.parametrize(("document", "number"), SNIPPETS)
def test_parts_of_a_recipe_train(document: Path, number: int, tmp_path: Path) -> None:
    """A page's parts follow each other: a later one is added to those before it."""
    recipe: dict[str, Any] = yaml.safe_load(SMALL)
    model, data = recipe["model"], recipe["data"]
    for text in re.findall(r"^```yaml\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)[:number]:
        for section, fields in yaml.safe_load(text).items():
            replaced = section in ("method", "task")
            recipe[section] = fields if replaced else {**recipe.get(section, {}), **fields}
    recipe |= {"model": model, "data": data, "output": {"dir": str(tmp_path / "run")}}  # nothing is fetched
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(file)]) == 0


def test_the_tutorial_runs(tmp_path: Path) -> None:
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S))
    function = f'sktune() {{ "{sys.executable}" -m sktune "$@"; }}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-ec", f"{function}\n{script}"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "runs" / "films" / "adapter" / "adapter.safetensors").is_file()
    assert '"accuracy"' in found.stdout
    assert "a fine film\n  -> " in found.stdout


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
