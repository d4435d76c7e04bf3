"""A run's adapter as a model of MLflow 3: logged with its scores, loaded, served, evaluated and registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.tracking import MlflowClient
from training_fixtures import TASKS, Sections, Workshop, free_port, tracked

from sktune.cli import main
from sktune.tracking import tracker
from sktune.tracking.replay import replay

QUICK: Sections = {"training": {"max_steps": 4, "warmup_steps": 0, "eval_steps": 2, "learning_rate": 0.1}}
TEXTS = ["w1 w2 w15", "w12", "w3 w13 w14 w4"]


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def predicted(
    capsys: pytest.CaptureFixture[str], run: Path, texts: list[str], pairs: list[str]
) -> list[dict[str, Any]]:
    options = [part for text in texts for part in ("--text", text)]
    options += [part for pair in pairs for part in ("--text-pair", pair)]
    capsys.readouterr()
    assert main(["predict", str(run), *options, "--json"]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [{key: value for key, value in line.items() if not key.startswith("text")} for line in lines]


def test_a_tracked_run_logs_its_best_weights_with_their_scores(workshop: Workshop, tmp_path: Path) -> None:
    summary = workshop.train("run", TASKS["sequence"], QUICK, tracked(tmp_path / "mlflow.db"))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    (model,) = client.search_logged_models(["1"])
    assert model.source_run_id == run.info.run_id
    assert model.status == "READY"
    assert model.name == "sk_prefix-model0-float32-seed42"
    assert model.tags["method"] == "sk_prefix"
    assert model.params["method.rank"] == "4"
    best = int(summary["best_step"])
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model.model_id, best)]
    scores = {(metric.key, metric.step): metric.value for metric in model.metrics}
    assert scores[("validation/accuracy", best)] == summary["validation/accuracy"]
    assert scores[("final/test/accuracy", 4)] == summary["test/accuracy"]
    assert {step for name, step in scores if name.startswith("validation/")} == {best}
    # They are the run's own points, not second ones.
    history = client.get_metric_history(run.info.run_id, "validation/accuracy")
    assert [point.step for point in history] == [2, 4]


@pytest.fixture(autouse=True)
def _own_address() -> Iterator[None]:
    """Where a test says MLflow is, other tests do not look."""
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("task", TASKS)
def test_what_mlflow_loads_says_what_predict_says(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    workshop.train("run", TASKS[task], QUICK, tracked(tmp_path / "mlflow.db"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (logged,) = MlflowClient(uri).search_logged_models(["1"])
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    pairs = ["w4", "w5 w6", "w7"] if task == "pair" else []
    table = pandas.DataFrame({"text": TEXTS, **({"text_pair": pairs} if pairs else {})}, index=[7, 3, 5])
    found = model.predict(table)
    assert list(found.index) == [7, 3, 5]
    for said, row in zip(
        predicted(capsys, workshop.output("run"), TEXTS, pairs), found.to_dict("records"), strict=True
    ):
        assert said.keys() == row.keys()
        for key, value in said.items():
            assert row[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float | dict) else value)
    signature = model.metadata.signature
    assert signature.inputs.input_names() == list(table.columns)
    assert signature.outputs.input_names() == list(found.columns)
    mlflow.models.utils._enforce_schema(found, signature.outputs)  # the columns are of the types that it names
    assert model.metadata.model_id == logged.model_id
    assert len(model.predict(model.input_example)) == 1


@pytest.mark.parametrize("task", ["sequence", "pair", "token", "generation"])
def test_an_export_is_replayed_by_mlflows_own_server(workshop: Workshop, tmp_path: Path, task: str) -> None:
    workshop.train("run", TASKS[task], QUICK)
    folder = tmp_path / "exported"
    command = ["export", str(workshop.output("run")), "--to", "mlflow", "--output", str(folder), "--check", "5"]
    assert main([*command, "--tolerance", "1e-5"]) == 0
    card = json.loads((folder / "export.json").read_text())
    assert card["replayed"]["examples"] == 5
    assert card["replayed"]["same_answers"] == 1.0
    assert "mlflow models serve -m exported" in (folder / "README.md").read_text()
    assert not (folder / "data" / "adapter" / "model.safetensors").exists()  # the frozen model is named, not copied


def test_an_export_is_registered_beside_its_run_and_scored_by_mlflow(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    summary = workshop.train("run", TASKS["sequence"], QUICK, tracked(tmp_path / "mlflow.db"))
    command = ["export", str(workshop.output("run")), "--to", "mlflow", "--register", "films"]
    for version in ("1", "2"):
        assert main([*command, "--output", str(tmp_path / version)]) == 0
        assert json.loads(capsys.readouterr().out.rpartition("}")[0] + "}")["registered"] == f"films/{version}"
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"])
    assert {one.run_id for one in client.search_model_versions("name='films'")} == {run.info.run_id}
    assert not mlflow.is_tracking_uri_set()  # nor is its variable, which later recipes of this process would go by
    assert len(client.search_logged_models(["1"])) == 3  # the run's own, and these
    mlflow.set_tracking_uri(uri)
    rows = [json.loads(line) for line in (Path(workshop.base["data"]["path"]) / "test.jsonl").read_text().splitlines()]
    table = pandas.DataFrame({"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]})
    with mlflow.start_run(experiment_id="1"):
        found = mlflow.models.evaluate(
            "models:/films/2", table, targets="label", model_type="classifier", model_config={"column": "label"}
        )
    assert found.metrics["accuracy_score"] == pytest.approx(summary["test/accuracy"])


def test_what_cannot_be_registered(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.train("run", TASKS["sequence"], QUICK)
    command = ["export", str(workshop.output("run")), "--output", str(tmp_path / "out"), "--register", "films", "--to"]
    assert main([*command, "peft"]) == 2
    assert "--register goes with --to mlflow" in capsys.readouterr().err
    assert main([*command, "mlflow"]) == 2
    assert "MLflow does not know the run of" in capsys.readouterr().err


def test_the_machine_is_sampled_where_it_is_asked_for(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")  # as MLflow's users say it
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    store = tracked(tmp_path / "mlflow.db")
    workshop.train("run", TASKS["sequence"], QUICK, store)
    (run,) = client.search_runs(["1"])
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    samples = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert [point.step for point in samples] == list(range(len(samples)))
    # A resumed run goes on; its own steps are not those of the samples.
    workshop.train("run", TASKS["sequence"], QUICK, store, {"training": {"max_steps": 6, "resume": "auto"}})
    (run,) = client.search_runs(["1"])
    more = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert [point.step for point in more] == list(range(len(more)))
    assert len(more) > len(samples)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "final/steps")] == [4, 6]
    workshop.train("plain", TASKS["sequence"], QUICK, store, {"tracking": {"system_metrics": False}})
    plain = next(one for one in client.search_runs(["1"]) if one.info.run_id != run.info.run_id)
    assert not [name for name in plain.data.metrics if name.startswith("system/")]


def test_a_model_waits_for_a_server_that_is_away(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0.1)
    away = {"tracking": {"enabled": True, "tracking_uri": f"http://127.0.0.1:{free_port()}"}}
    summary = workshop.train("run", TASKS["sequence"], QUICK, away)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(2):  # the second time there is nothing to do
        replay(workshop.output("run"), uri)
    (model,) = MlflowClient(uri).search_logged_models(["1"])
    assert model.status == "READY"
    scores = {metric.key: metric.value for metric in model.metrics}
    assert scores["final/test/accuracy"] == summary["test/accuracy"]


def test_a_server_without_models_gets_all_the_rest(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "create_logged_model", unknown)
    workshop.train("run", TASKS["sequence"], QUICK, tracked(tmp_path / "mlflow.db"))
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert "final/test/accuracy" in run.data.metrics
    assert caplog.text.count("keeps no models") == 1
