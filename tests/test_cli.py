"""The command line from end to end: every task trained, evaluated and asked; mistakes become one message."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from training_fixtures import ROOT, TASKS, Sections, Start, Workshop, scores_of, summary_of, tracked

from sktune.cli import main
from sktune.cli.commands import COMMANDS
from sktune.methods import METHODS
from sktune.recipe import load_recipe
from sktune.recipe.document import read_document

TEXTS = ("w1 w2 w3", "w15 w25")
PAIR = ["--text-pair", "w1 w2 w3", "--text-pair", "w40 w41"]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The command sets environment variables for its process, which here is the tests'."""
    with mock.patch.dict(os.environ):
        os.environ.pop("SKTUNE_DEBUG", None)
        yield


def succeed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Runs the command; returns what it printed."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Runs the command; returns its error message."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    _, err = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in err
    message = err[err.index("error: ") :]
    return message.removeprefix("error: ")


# -- every task, train -> evaluate -> predict -------------------------------------------------------------------


def _check_token(answer: dict[str, Any]) -> None:
    words = answer["text"].split()
    assert answer["words"] == words
    assert len(answer["tags"]) == len(words)
    assert set(answer["tags"]) <= {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}
    tagged = sum(tag != "O" for tag in answer["tags"])
    assert sum(len(entity["text"].split()) for entity in answer["entities"]) == tagged


def _check_labels(*labels: str) -> Any:
    def check(answer: dict[str, Any]) -> None:
        assert set(answer["probabilities"]) == set(labels)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    return check


def _check_several(answer: dict[str, Any]) -> None:
    assert answer["probabilities"].keys() == {"people", "places"}
    assert answer["labels"] == [label for label, share in answer["probabilities"].items() if share >= 0.5]


def _check_number(answer: dict[str, Any]) -> None:
    assert isinstance(answer["value"], float)


def _check_generated(answer: dict[str, Any]) -> None:
    assert isinstance(answer["generated"], str)
    assert len(answer["generated"].split()) <= 3


CHECKS = {
    "token": _check_token,
    "sequence": _check_labels("people", "places"),
    "pair": _check_labels("same", "other"),
    "regression": _check_number,
    "several": _check_several,
    "words": _check_labels("people", "places"),
    "generation": _check_generated,
}


@pytest.mark.parametrize("method", ["sk_prefix", "sk_prompt"])
@pytest.mark.parametrize("task", TASKS)
def test_train_evaluate_predict(workshop: Workshop, capsys: pytest.CaptureFixture[str], task: str, method: str) -> None:
    recipe = workshop.write("run", TASKS[task], {"method": {"name": method}})
    output = workshop.output("run")

    printed = succeed(capsys, "train", recipe, "training.max_steps=4")
    summary = summary_of(output)
    assert summary["steps"] == 4
    assert f"adapter: {output}/adapter" in printed
    for name in scores_of(summary):
        assert name in printed

    scored = json.loads(succeed(capsys, "evaluate", output))
    scored.pop("per_type", None)
    assert {f"test/{name}": value for name, value in scored.items()} == {
        name: value for name, value in summary.items() if name.startswith("test/")
    }
    assert (output / "evaluation" / "test.predictions.jsonl").read_text() == (
        output / "predictions" / "test.jsonl"
    ).read_text()
    validation = json.loads(succeed(capsys, "evaluate", output, "--split", "validation"))
    assert validation["loss"] == pytest.approx(summary["validation/loss"], rel=1e-6)

    texts = [part for text in TEXTS for part in ("--text", text)] + (PAIR if task == "pair" else [])
    lines = succeed(capsys, "predict", output, *texts, "--json").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers] == list(TEXTS)
    for answer in answers:
        CHECKS[task](answer)
    shown = succeed(capsys, "predict", output, *texts).splitlines()
    assert shown[::2] == list(TEXTS)
    assert all(line.startswith("  -> ") for line in shown[1::2])


def test_predict_says_what_evaluate_says(
    workshop: Workshop, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, "train", workshop.write("run", TASKS["sequence"]))
    rows = [json.loads(line) for line in (data_folder / "test.jsonl").read_text().splitlines()]
    file = workshop.folder / "texts.txt"
    file.write_text("\n".join(row["text"] for row in rows) + "\n")
    printed = succeed(capsys, "predict", workshop.output("run"), "--file", file, "--json")
    answers = [json.loads(line) for line in printed.splitlines()]
    written = (workshop.output("run") / "predictions" / "test.jsonl").read_text().splitlines()
    for answer, line in zip(answers, written, strict=True):
        record = json.loads(line)
        assert answer["label"] == record["prediction"]
        assert answer["probabilities"] == pytest.approx(record["probabilities"], abs=1e-5)


def test_resume_and_tracking_from_the_command_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.write("run", tracked(tmp_path / "mlflow.db"))
    printed = succeed(capsys, "train", recipe, "training.max_steps=4")
    assert f"tracked: sqlite:///{tmp_path / 'mlflow.db'}" in printed
    assert "already holds a run" in refused(capsys, "train", recipe)
    succeed(capsys, "train", recipe, "--resume")
    assert summary_of(workshop.output("run"))["steps"] == 8


# -- mistakes ---------------------------------------------------------------------------------------------------


def test_a_broken_recipe_is_one_message(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = workshop.write("run", {"training": {"learning_rate": -1}, "task": {"name": "tagging"}})
    message = refused(capsys, "train", recipe, "training.max_stepz=4")
    for field in ("training.learning_rate", "task.name", "max_stepz"):
        assert field in message  # all of them at once
    assert not workshop.output("run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name_or_path": "no/such/folder/here"}}, "model.name_or_path"),
        ({"data": {"train": "absent.conll"}}, "absent.conll"),
        ({"data": {"max_length": 5000}}, "data.max_length"),
        ({"tracking": {"enabled": True, "tracking_uri": "file:///tmp/x"}}, "tracking.tracking_uri"),
    ],
)
def test_mistakes_found_later_are_one_message_too(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], changes: Sections, words: str
) -> None:
    assert words in refused(capsys, "train", workshop.write("run", changes))


def test_a_corrected_recipe_runs_in_the_folder_of_the_failed_one(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "train", workshop.write("run", {"data": {"train": "absent.conll"}}))
    succeed(capsys, "train", workshop.write("run"), "--resume")


def test_every_line_of_a_file_is_answered(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    file = workshop.folder / "texts.txt"
    file.write_bytes("\ufeffw1 w2\n\nw3\nw4\u2028w5\n".encode())
    for task in ("sequence", "token"):
        succeed(capsys, "train", workshop.write(task, TASKS[task]), "training.max_steps=2")
        printed = succeed(capsys, "predict", workshop.output(task), "--file", file, "--json")
        answers = [json.loads(line) for line in printed.removesuffix("\n").split("\n")]
        assert [answer["text"] for answer in answers] == ["w1 w2", "", "w3", "w4\u2028w5"]
    assert answers[1]["tags"] == []


@pytest.mark.parametrize("task", ["sequence", "token", "generation"])
def test_what_predict_has_not_read_is_said(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, task: str
) -> None:
    succeed(capsys, "train", workshop.write("run", TASKS[task]), "training.max_steps=2", "data.max_length=16")
    texts = ["--text", "w1", "--text", "w1 " * 40 + "w3"]
    caplog.clear()
    printed = succeed(capsys, "predict", workshop.output("run"), *texts, "--json")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("text 2: 1 of 1 inputs truncated to 16 tokens")
    if task == "token":
        whole, cut = (json.loads(line)["tags"] for line in printed.splitlines())
        assert None not in whole
        read = cut.index(None)
        assert 0 < read <= 16
        assert cut[read:] == [None] * (41 - read)


def test_labels_that_look_like_numbers_come_back_as_they_were(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workshop.folder / "e5.jsonl"
    file.write_text('{"text": "w1", "label": "1e5"}\n{"text": "w20", "label": "0o17"}\n')
    data = {"data": {"train": str(file), "validation": None, "test": None}}
    texts = ('task.labels=["1e5", "0o17"]', 'tracking.run_name="1e5"')
    quick = {"training": {"max_steps": 1, "warmup_steps": 0, "eval_steps": ...}}
    succeed(capsys, "train", workshop.write("run", TASKS["sequence"], data, quick), *texts)
    output = workshop.output("run")
    answer = json.loads(succeed(capsys, "predict", output, "--text", "w1", "--json"))
    assert set(answer["probabilities"]) == {"1e5", "0o17"}
    recipe = load_recipe(output / "adapter" / "recipe.yaml")
    assert recipe.task.labels == ("1e5", "0o17")
    assert recipe.tracking.run_name == "1e5"
    tracked_recipe = read_document(output / "tracking" / "recipe.yaml").mapping
    assert tracked_recipe["task"]["labels"] == ["1e5", "0o17"]
    assert tracked_recipe["tracking"]["run_name"] == "1e5"


def test_mlflows_own_variables_decide_where_the_recipe_is_silent(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{workshop.folder}/of_environment.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of environment")
    silent = workshop.write("silent", {"tracking": {"enabled": ...}})
    section = load_recipe(silent).tracking
    assert (section.tracking_uri, section.experiment_name) == (uri, "of environment")
    written = load_recipe(silent, ["tracking.tracking_uri=sqlite:///own.db"]).tracking
    assert (written.tracking_uri, written.experiment_name) == ("sqlite:///own.db", "of environment")
    quick = ("training.max_steps=1", "training.warmup_steps=0", "training.eval_steps=null", "data.test=null")
    with caplog.at_level("INFO", logger="sktune"):
        assert main(["train", str(silent), *quick, "data.validation=null"]) == 0
    said = [line for line in caplog.messages if line.startswith("tracking.")]
    assert said == [
        f"tracking.tracking_uri: {uri}, as MLFLOW_TRACKING_URI says and the recipe does not",
        "tracking.experiment_name: of environment, as MLFLOW_EXPERIMENT_NAME says and the recipe does not",
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert load_recipe(workshop.output("silent") / "adapter" / "recipe.yaml").tracking.experiment_name == "sktune"


def test_predictions_name_the_rows_of_the_file(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["people", None, "places", None, "people"]
    gaps = workshop.folder / "gaps.jsonl"
    gaps.write_text("".join(json.dumps({"text": f"w{i}", "label": label}) + "\n" for i, label in enumerate(labels)))
    recipe = workshop.write("run", TASKS["sequence"], {"data": {"test": str(gaps)}})
    succeed(capsys, "train", recipe, "training.max_steps=2")
    succeed(capsys, "evaluate", workshop.output("run"))
    for file in ("predictions/test.jsonl", "evaluation/test.predictions.jsonl"):
        records = [json.loads(line) for line in (workshop.output("run") / file).read_text().splitlines()]
        assert [record["row"] for record in records] == [0, 2, 4]


def test_evaluate_and_predict_refuse_with_one_message(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    output = workshop.output("run")
    assert "no trained adapter here" in refused(capsys, "evaluate", output)
    succeed(capsys, "train", workshop.write("run", {"data": {"test": None}, "training": {"max_steps": 2}}))
    assert "the recipe has no test data" in refused(capsys, "evaluate", output)
    assert "'dev' is unknown; allowed: train, validation, test" in refused(capsys, "evaluate", output, "--split", "dev")
    assert "nothing to predict" in refused(capsys, "predict", output)
    assert "cannot be read" in refused(capsys, "predict", output, "--file", workshop.folder / "none.txt")
    assert "trained on single texts" in refused(capsys, "predict", output, "--text", "w1", "--text-pair", "w2")
    assert "has no words" in refused(capsys, "predict", output, "--text", " ")
    weights = output / "adapter" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "no trained adapter can be read" in refused(capsys, "predict", output, "--text", "w1")


def test_pairs_need_a_second_text(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    succeed(capsys, "train", workshop.write("run", TASKS["pair"]), "training.max_steps=2")
    assert "one --text-pair for each --text" in refused(capsys, "predict", workshop.output("run"), "--text", "w1")
    two = ("--text", "w1", "--text", "w2", "--text-pair", "w3")
    assert "one --text-pair for each --text" in refused(capsys, "predict", workshop.output("run"), *two)


def test_validate(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    good = workshop.write("good")
    bad = workshop.write("bad", {"training": {"seed": "many"}})
    assert succeed(capsys, "validate", good).startswith(f"OK {good}")
    assert main(["validate", str(good), str(bad)]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 recipes are good" in out
    assert "training.seed" in err
    assert main(["validate", str(good), "training.seed=many"]) == 1


def test_debugging_shows_the_traceback(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKTUNE_DEBUG", "1")
    with pytest.raises(ValueError, match=r"absent\.conll"):
        main(["train", str(workshop.write("run", {"data": {"train": "absent.conll"}}))])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"sktune {command} " in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["finetune"], "did you mean train?"),
        (["train"], "no recipe is given"),
        (["train", "x.yaml", "--resum"], "did you mean --resume?"),
        (["train", "x.yaml", "--learning_rate", "1"], "did you mean the field training.learning_rate?"),
        (["train", "x.yaml", "--lora-alpha=1"], "did you mean the field method.alpha?"),
        (["train", "x.yaml", "--training.seed"], "--training.seed needs a value"),
        (["train", "x.yaml", "--training.seed", "--resume"], "--training.seed needs a value"),
        (["train", "x.yaml", "--quiet", "--verbose"], "contradict"),
        (["evaluate", "runs/x", "--splits", "test"], "did you mean --split?"),
    ],
)
def test_a_wrong_command_line_says_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, *arguments)


FORMS: list[list[str]] = [
    ["train", "RECIPE", "training.max_steps=3", "training.seed=-1"],
    ["train", "--recipe", "RECIPE", "training.max_steps=3", "training.seed=-1"],
    ["train", "--local_rank=0", "--recipe=RECIPE", "--training.max_steps=3", "--training.seed", "-1"],
    ["--local_rank=0", "train", "training.max_steps=3", "RECIPE", "--training.seed=-1"],
    ["train", "--training.max_steps", "3", "RECIPE", "--local-rank", "1", "training.seed=-1"],
    ["train", "RECIPE", "--", "training.max_steps=3", "training.seed=-1"],
]


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_recipe_and_overrides_are_understood_in_every_form(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    recipe = str(workshop.write("a=b"))
    received: list[Any] = []
    monkeypatch.setattr("sktune.cli.train.run_train", lambda *given: received.append(given))
    assert main([argument.replace("RECIPE", recipe) for argument in form]) == 0
    assert received == [(recipe, ["training.max_steps=3", "training.seed=-1"])]


def test_a_quiet_run_logs_no_progress_and_prints_its_results(workshop: Workshop, start: Start) -> None:
    running = start([sys.executable, "-m", "sktune", "train", str(workshop.write("run")), "--quiet"])
    assert running.wait(120) == 0
    lines = running.output().splitlines()
    assert any(line.startswith("adapter: ") for line in lines)
    assert not any("threads:" in line for line in lines)


@pytest.mark.parametrize("also", [[], ["--verbose"]], ids=["refused for its recipe", "refused for its options"])
def test_a_quiet_command_leaves_the_next_one_in_its_process_as_loud_as_ever(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, also: list[str]
) -> None:
    assert main(["train", "no.yaml", "--quiet", *also]) == 2
    assert main(["train", str(workshop.write("run"))]) == 0
    assert "step 1/8" in caplog.text


def test_shell_completion_knows_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        environment = {**os.environ, "_SKTUNE_COMPLETE": "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split()) - 1)
        command = [sys.executable, "-m", "sktune"]
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in found.stdout.splitlines()]

    assert completed("sktune ev") == ["evaluate"]
    assert completed("sktune train --res") == ["--resume"]


# -- what there is, and what a run would do ---------------------------------------------------------------------


def test_lists_name_everything_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[0] for line in succeed(capsys, "list", "methods").splitlines()] == list(METHODS)
    assert "token_classification" in succeed(capsys, "list", "tasks")
    assert "quickstart_miniature.yaml" in succeed(capsys, "list", "recipes")
    rank = next(line for line in succeed(capsys, "list", "fields", "method.lora").splitlines() if ".rank" in line)
    assert rank == "method.lora.rank  [a whole number, >= 1; 8]  Of the updates."
    assert "did you mean method.lora?" in refused(capsys, "list", "fields", "method.lor")
    assert "belong to" in refused(capsys, "list", "tasks", "training")


def test_the_reference_of_fields_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    written = (ROOT / "docs" / "fields.md").read_text(encoding="utf-8")
    made = succeed(capsys, "list", "fields", "--format", "markdown")
    assert made == written, "run: sktune list fields --format markdown > docs/fields.md"


def test_a_dry_run_reads_data_and_writes_nothing(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = workshop.write("run", TASKS["sequence"], {"data": {"max_length": 6}})
    with mock.patch("sktune.backbone.loading.load_backbone", side_effect=AssertionError("weights were loaded")):
        printed = succeed(capsys, "train", recipe, "--dry-run", "training.max_steps=4")
    assert "labels (2): people, places" in printed
    assert re.search(r"train: people \d+, places \d+|train: places \d+, people \d+", printed)
    assert re.search(r"train: \d+ of 22 inputs truncated to 6 tokens", printed)
    assert "steps: 4 of " in printed
    assert "most at any instant" in printed
    assert not workshop.output("run").exists()
    assert "--resume does nothing" in refused(capsys, "train", recipe, "--dry-run", "--resume")


def test_validate_opens_the_files_where_asked(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = workshop.write("run", TASKS["sequence"])
    assert re.search(r"validation: \d+ to \d+ tokens", succeed(capsys, "validate", recipe, "--data"))
    broken = workshop.write("broken", {"data": {"train": "absent.conll"}})
    succeed(capsys, "validate", broken)
    assert "absent.conll" in refused(capsys, "validate", broken, "--data")


# -- sktune init ------------------------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_validates_and_reads_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{number},a film of {number} minutes,{('bad', 'good')[number % 2]}" for number in range(8)]
    Path("films.csv").write_text("\n".join(["id,review,opinion", *rows]), encoding="utf-8")
    Path("test.csv").write_text("\n".join(["id,review,opinion", *rows[:4]]), encoding="utf-8")
    given = ["init", "--data", "films.csv", "--model", "embedded:llama", "--output", "films.yaml"]
    assert "--task is missing" in refused(capsys, *given)
    assert "did you mean token_classification?" in refused(capsys, *given, "--task", "ner")
    assert not Path("films.yaml").exists()
    task = ["--task", "sequence_classification"]
    assert "labels: bad 4, good 4" in succeed(capsys, *given, *task)
    data = load_recipe("films.yaml").data
    assert (data.text_column, data.label_column) == ("review", "opinion")
    assert (data.train, data.validation, data.test) == ("films.csv", None, "test.csv")
    assert "labels (2): bad, good" in succeed(capsys, "validate", "films.yaml", "--data")
    assert "films.yaml exists" in refused(capsys, *given, *task)
    succeed(capsys, *given, *task, "--force")


# -- the launchers as plain scripts -----------------------------------------------------------------------------


def test_the_train_launcher_alone_refuses_without_a_traceback(workshop: Workshop, start: Start) -> None:
    recipe = workshop.write("run", {"data": {"train": "absent.conll"}})
    running = start([sys.executable, str(ROOT / "launchers" / "train.py"), "--recipe", str(recipe)])
    assert running.wait(60) == 2
    assert "error: " in running.output()
    assert "absent.conll" in running.output()
    assert "Traceback" not in running.output()


def test_help_and_validation_do_not_load_torch(workshop: Workshop) -> None:
    recipe = str(workshop.write("run"))
    code = (
        "import sys; from sktune.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'datasets', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(status or ' '.join(heavy) or None)"
    )
    for arguments in (["validate", recipe], ["--help"], *([command, "--help"] for command in COMMANDS)):
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, (arguments, found.stderr)
