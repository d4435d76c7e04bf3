"""Tracking by behaviour: real sqlite stores, and a real MLflow server killed in the middle of a run."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow.utils.validation as mlflow_limits
import pytest
from mlflow.tracking import MlflowClient

from sktune.errors import UserError, hide_password, named_line
from sktune.files import FIGURES_FOLDER, TRACKING_STATE_FILE
from sktune.recipe.document import read_document
from sktune.sections import TrackingSection
from sktune.tracking import Tracker, figures, names, start_tracking, tracker
from sktune.tracking import replay as replay_module
from sktune.tracking.figures import confusion_matrix_figure, per_type_f1_figure
from sktune.tracking.names import as_params, sanitise_name, sanitise_names
from sktune.tracking.record import Record
from sktune.tracking.replay import replay
from sktune.tracking.uri import open_client

RECIPE = {
    "model": {"name_or_path": "embedded:llama", "tokenizer": None},
    "method": {"name": "sk_prefix", "text": "tag the entities"},
    "training": {"learning_rate": 0.005, "gradient_checkpointing": False},
    "task": {"labels": ["O", "B-PER"]},
}

Start = Callable[..., Tracker]


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without runs: making one takes seconds, so each test copies this one."""
    path = tmp_path_factory.mktemp("template") / "new folder" / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def start(tmp_path: Path, uri: str) -> Start:
    def start_run(**options: object) -> Tracker:
        section = {"tracking_uri": uri, "experiment_name": "tests", **options.pop("section", {})}  # type: ignore[dict-item]
        arguments: dict[str, object] = {
            "recipe_params": RECIPE,
            "tags": {},
            "run_name": "sk_prefix-llama-4bit-42",
            "run_id": None,
            "output_dir": tmp_path / "run",
            "is_main": True,
            **options,
        }
        return start_tracking(TrackingSection(**section), **arguments)  # type: ignore[arg-type]

    return start_run


def history(uri: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, name)]


def local_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def artifacts(uri: str, run_id: str | None, folder: str | None = None) -> list[str]:
    return [entry.path for entry in MlflowClient(uri).list_artifacts(run_id, folder)]


# --- one run ---------------------------------------------------------------------------------------------


def test_a_run_is_recorded_whole(start: Start, uri: str, tmp_path: Path) -> None:
    run = start(tags={"quantization": "nf4"}, section={"tags": {"team": "nlp"}})
    run.log_metrics({"train/loss": 2.0, "train/learning_rate": 1e-3}, 10)
    run.log_metrics({"train/loss": 1.0}, 20)
    run.log_summary({"f1": 0.5, "trainable_params": 1096, "sharding": "zero3", "merged": True})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights.txt").write_text("w")
    run.log_artifact(tmp_path / "adapter")
    run.log_artifact(tmp_path / "adapter" / "weights.txt", folder="extra")
    run.set_tags({"stage": "done"})
    run.finish("FINISHED")

    result = MlflowClient(uri).get_run(run.run_id)
    assert result.info.status == "FINISHED"
    assert result.info.run_name == "sk_prefix-llama-4bit-42"
    assert history(uri, run.run_id, "train/loss") == [(10, 2.0), (20, 1.0)]
    assert history(uri, run.run_id, "final/f1") == [(20, 0.5)]
    assert result.data.metrics["final/trainable_params"] == 1096
    params = result.data.params
    assert params["final/sharding"] == "zero3"
    assert params["final/merged"] == "true"
    assert params["model.tokenizer"] == "null"
    assert params["training.learning_rate"] == "0.005"
    assert params["training.gradient_checkpointing"] == "false"
    assert params["task.labels"] == '["O", "B-PER"]'
    tags = result.data.tags
    assert (tags["quantization"], tags["team"], tags["stage"]) == ("nf4", "nlp", "done")
    assert tags["version.python"].startswith("3.")
    assert {"version.torch", "version.transformers", "version.deepspeed", "version.mlflow"} <= set(tags)
    assert artifacts(uri, run.run_id) == ["adapter", "extra", "recipe.yaml"]
    assert artifacts(uri, run.run_id, "adapter") == ["adapter/weights.txt"]
    # Beside the database, not in whatever folder training was started from.
    assert (tmp_path / "mlartifacts" / "tests" / str(run.run_id) / "artifacts" / "recipe.yaml").is_file()


def test_a_failed_run_ends_failed_with_the_first_line_of_its_error(start: Start, uri: str) -> None:
    run = start()
    run.finish("FAILED", "ValueError: loss is nan at step 7\nTraceback: ...")
    run.finish("FINISHED")  # a `finally` that comes later changes nothing
    result = MlflowClient(uri).get_run(run.run_id)
    assert result.info.status == "FAILED"
    assert result.data.tags["error"] == "ValueError: loss is nan at step 7"


def test_an_error_whose_message_begins_with_an_empty_line_still_says_what_it_is(start: Start, uri: str) -> None:
    run = start()
    run.finish("FAILED", named_line(ValueError("\n  $10_$20\n  ^\nExpected end of text")))
    assert MlflowClient(uri).get_run(run.run_id).data.tags["error"] == "ValueError: $10_$20"
    assert named_line(ValueError("\n\n")) == "ValueError"


def test_values_that_are_not_finite_arrive(start: Start, uri: str, tmp_path: Path) -> None:
    run = start()
    run.log_metrics({"train/loss": math.nan, "train/grad_norm": math.inf}, 1)
    [(step, value)] = history(uri, run.run_id, "train/loss")
    assert step == 1
    assert math.isnan(value)
    [line] = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    strict = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert strict["metrics"] == {"train/loss": "nan", "train/grad_norm": "inf"}


def test_a_long_param_is_cut_and_the_recipe_artifact_has_it_whole(start: Start, uri: str) -> None:
    text = "x" * 20_000
    many = {f"word{index}": index for index in range(250)}
    run = start(recipe_params={"method": {"text": text}, "task": {"label_words": many}})
    params = MlflowClient(uri).get_run(run.run_id).data.params
    assert params["method.text"] == "x" * (names.MAX_PARAM_LENGTH - 3) + "..."
    assert len(params) == 251
    [recipe] = [a for a in artifacts(uri, run.run_id) if a == "recipe.yaml"]
    assert text in Path(MlflowClient(uri).download_artifacts(run.run_id, recipe)).read_text()


def test_texts_that_look_like_numbers_are_texts_in_the_tracked_recipe(start: Start, tmp_path: Path) -> None:
    texts = ["1e5", "0o17", "1234e56", "007", "1.", ".5", "0x1f", "yes", "null", "1:30", "+.inf", "1_000"]
    start(recipe_params={"model": {"revision": "1234e56"}, "task": {"labels": texts}}, section={"enabled": False})
    read = read_document(tmp_path / "run" / "tracking" / "recipe.yaml").mapping
    assert read == {"model": {"revision": "1234e56"}, "task": {"labels": texts}}


def test_our_limits_are_those_of_the_installed_mlflow() -> None:
    assert names.MAX_PARAM_LENGTH == mlflow_limits.MAX_PARAM_VAL_LENGTH
    assert names.MAX_TAG_LENGTH == mlflow_limits.MAX_TAG_VAL_LENGTH
    assert names.MAX_NAME_LENGTH == mlflow_limits.MAX_ENTITY_KEY_LENGTH
    assert names.MAX_PARAMS_PER_BATCH == mlflow_limits.MAX_PARAMS_TAGS_PER_BATCH
    assert names.MAX_METRICS_PER_BATCH == mlflow_limits.MAX_METRICS_PER_BATCH


@pytest.mark.parametrize(
    "name",
    ["f1(macro)", "/eval//f1/", "../x", "a/./b", "", ".", "x" * 300, "x" * 249 + "/y", "é+ü", "ok/f1-a.b"],
)
def test_names_are_made_acceptable_once_and_for_all(name: str) -> None:
    accepted = sanitise_name(name)
    mlflow_limits._validate_metric_name(accepted)
    assert len(accepted) <= mlflow_limits.MAX_ENTITY_KEY_LENGTH
    assert sanitise_name(accepted) == accepted


def test_names_that_become_equal_are_kept_apart(start: Start, uri: str) -> None:
    assert sanitise_names({"f1(a": 1, "f1)a": 2, "f1_a": 3}) == {"f1_a": 1, "f1_a_2": 2, "f1_a_3": 3}
    assert as_params({"words": {"+": "good", "*": "bad"}}) == {"words._": "good", "words.__2": "bad"}
    run = start()
    run.log_metrics({"eval/f1(a)": 0.1, "eval/f1[a]": 0.2}, 1)
    assert history(uri, run.run_id, "eval/f1_a_") == [(1, 0.1)]
    assert history(uri, run.run_id, "eval/f1_a__2") == [(1, 0.2)]


# --- ranks and switches ----------------------------------------------------------------------------------


def test_other_ranks_never_load_mlflow_and_write_nothing(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from sktune.sections import TrackingSection
from sktune.tracking import start_tracking
run = start_tracking(TrackingSection(tracking_uri="sqlite:///{tmp_path}/mlflow.db"), recipe_params={{}},
                     tags={{}}, run_name="r", run_id=None, is_main=False,
                     output_dir=Path({str(tmp_path / "run")!r}))
run.log_metrics({{"loss": 1.0}}, 1); run.log_summary({{"f1": 1}}); run.set_tags({{"a": "b"}})
run.log_artifact("nothing"); run.finish("FAILED", "x")
assert run.run_id is None
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    assert list(tmp_path.iterdir()) == []


def test_disabled_tracking_keeps_the_record_which_can_be_uploaded_later(start: Start, uri: str, tmp_path: Path) -> None:
    run = start(section={"enabled": False})
    run.log_metrics({"train/loss": 1.0}, 5)
    run.finish("FINISHED")
    assert local_steps(tmp_path / "run") == [5]
    assert MlflowClient(uri).search_experiments(filter_string="name = 'tests'") == []
    run_id = replay(tmp_path / "run", uri)
    assert history(uri, run_id, "train/loss") == [(5, 1.0)]
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("mlruns", r"sqlite:///mlruns/mlflow\.db"),
        ("file:///data/mlruns", r"sqlite:////data/mlruns/mlflow\.db"),
        ("", "plain folder"),
        ("gopher://host", "no 'gopher' store"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be opened"),
        ("http://", "names no host"),
        ("postgresql://me:secret@host/db", "driver|cannot be opened"),
    ],
)
def test_an_unusable_uri_is_a_clear_error(start: Start, bad: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        start(section={"tracking_uri": bad})
    assert str(caught.value).startswith("tracking.tracking_uri: ")
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_a_clear_error(start: Start, uri: str) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("tests"))
    with pytest.raises(ValueError, match="experiment 'tests' has been deleted"):
        start()


def test_passwords_are_hidden() -> None:
    assert hide_password("at https://me:se:cret@host:1/x!") == "at https://me:***@host:1/x!"
    assert hide_password("http://localhost:5000") == "http://localhost:5000"


# --- resuming --------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_without_doubles(start: Start, uri: str, tmp_path: Path) -> None:
    first = start()
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": 1.0 / step}, step)
    first.log_metrics({"eval/f1": 0.3}, 20)
    first.finish("KILLED", "out of time")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "st')  # the kill came in the middle of a line

    changed = {**RECIPE, "training": {"learning_rate": 0.1, "gradient_checkpointing": False, "seed": 7}}
    second = start(run_id=first.run_id, recipe_params=changed)
    assert second.run_id == first.run_id
    run = MlflowClient(uri).get_run(second.run_id)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags
    assert run.data.params["training.learning_rate"] == "0.005"
    assert run.data.tags["resumed.training.learning_rate"] == "0.1"
    assert run.data.params["training.seed"] == "7"
    assert "resumed.training.gradient_checkpointing" not in run.data.tags
    for step in (20, 30, 40):  # from the checkpoint of step 10
        second.log_metrics({"train/loss": 1.0 / step, "eval/f1": 0.4}, step)
    second.finish("FINISHED")

    assert history(uri, second.run_id, "train/loss") == [(s, 1.0 / s) for s in (10, 20, 30, 40)]
    assert history(uri, second.run_id, "eval/f1") == [(20, 0.3), (30, 0.4), (40, 0.4)]
    assert MlflowClient(uri).get_run(second.run_id).info.status == "FINISHED"
    assert len(MlflowClient(uri).search_runs([run.info.experiment_id])) == 1


def test_a_run_is_resumed_from_another_folder(start: Start, uri: str, tmp_path: Path) -> None:
    first = start()
    first.log_metrics({"train/loss": 1.0}, 10)
    second = start(run_id=first.run_id, output_dir=tmp_path / "elsewhere", recipe_params={"method": {"name": "lora"}})
    second.log_metrics({"train/loss": 9.0}, 10)
    second.log_metrics({"train/loss": 0.5}, 20)
    assert history(uri, first.run_id, "train/loss") == [(10, 1.0), (20, 0.5)]
    assert MlflowClient(uri).get_run(first.run_id).data.tags["resumed.method.name"] == "lora"


def test_resuming_a_run_that_the_store_has_lost_uploads_its_whole_record(
    start: Start, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    first.log_metrics({"train/loss": 1.0}, 10)
    MlflowClient(uri).delete_run(first.run_id)
    second = start(run_id=first.run_id)
    second.log_metrics({"train/loss": 0.5}, 20)
    assert second.run_id != first.run_id
    assert history(uri, second.run_id, "train/loss") == [(10, 1.0), (20, 0.5)]
    assert artifacts(uri, second.run_id) == ["recipe.yaml"]
    assert "uploaded as a new run" in caplog.text


def test_a_run_whose_creation_was_never_answered_is_found_again(start: Start, uri: str, tmp_path: Path) -> None:
    first = start()
    first.log_metrics({"train/loss": 1.0}, 1)
    path = tmp_path / "run" / TRACKING_STATE_FILE
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "run_id": None}))
    second = start(run_id=state["local_id"])
    assert second.run_id == first.run_id
    assert history(uri, second.run_id, "train/loss") == [(1, 1.0)]


def test_a_run_that_is_deleted_meanwhile_does_not_stop_training(
    start: Start, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    MlflowClient(uri).delete_run(run.run_id)
    for step in range(1, 4):
        run.log_metrics({"train/loss": 1.0}, step)
    run.finish("FINISHED")
    assert local_steps(tmp_path / "run") == [1, 2, 3]
    assert len([r for r in caplog.records if "refuses metrics" in r.message]) == 1
    assert [step for step, _ in history(uri, replay(tmp_path / "run"), "train/loss")] == [1, 2, 3]


def test_a_new_run_in_an_old_folder_leaves_the_old_metrics_behind(start: Start, uri: str, tmp_path: Path) -> None:
    start().log_metrics({"train/loss": 1.0}, 10)
    second = start()
    second.log_metrics({"train/loss": 0.5}, 10)
    assert local_steps(tmp_path / "run") == [10]
    assert history(uri, second.run_id, "train/loss") == [(10, 0.5)]


# --- a server that goes away -----------------------------------------------------------------------------


class Server:
    """A real `mlflow server` on a loopback port of its own."""

    def __init__(self, database: Path) -> None:
        self.database = database
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.database.parent / "served")]
        log = self.database.with_suffix(".log").open("ab")
        # Without the workers for MLflow's own background jobs, which would compete with its start.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"mlflow server did not start: {self.database.with_suffix('.log').read_text()[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Signal the server and its workers."""
        if self.process:
            os.killpg(self.process.pid, number)
            if number == signal.SIGKILL:
                self.process.wait()
                self.process = None


@pytest.fixture
def server(database: Path) -> Iterator[Server]:
    server = Server(database)
    yield server
    server.signal(signal.SIGKILL)


def test_a_server_killed_in_the_middle_costs_nothing(
    server: Server,
    start: Start,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracker, "FIRST_RETRY_SECONDS", 2.0)
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    run = start(section={"tracking_uri": server.uri})
    run.log_metrics({"train/loss": 1.0}, 1)
    assert history(uri, run.run_id, "train/loss") == [(1, 1.0)]

    # It hangs: requests are taken, and answered too late. Then it comes back, and so do the metrics, once.
    server.signal(signal.SIGSTOP)
    for step in range(2, 52):
        run.log_metrics({"train/loss": 1.0 / step}, step)
    run.set_tags({"while": "away"})
    assert len([r for r in caplog.records if "does not answer" in r.message]) == 1
    server.signal(signal.SIGCONT)
    time.sleep(2.5)
    run.log_metrics({"train/loss": math.nan}, 52)
    assert [step for step, _ in history(uri, run.run_id, "train/loss")] == list(range(1, 53))
    assert MlflowClient(uri).get_run(run.run_id).data.tags["while"] == "away"

    # It dies, and is still away when training ends.
    server.signal(signal.SIGKILL)
    began = time.monotonic()
    for step in range(53, 103):
        run.log_metrics({"train/loss": 1.0 / step}, step)
    folder = tmp_path / "run"
    (folder / "figure.txt").write_text("figure")
    run.log_artifact(folder / "figure.txt", FIGURES_FOLDER)
    run.finish("FINISHED")
    assert time.monotonic() - began < 10
    assert local_steps(folder) == list(range(1, 103))
    assert "sktune.tracking.replay" in caplog.text
    assert replay_module.main([str(folder)]) == 1  # still away: says so, and changes nothing

    server.start()
    for _ in range(2):  # twice: a repeated upload adds nothing
        assert replay_module.main([str(folder)]) == 0
    assert [step for step, _ in history(uri, run.run_id, "train/loss")] == list(range(1, 103))
    assert artifacts(server.uri, run.run_id, "figures") == ["figures/figure.txt"]
    assert MlflowClient(uri).get_run(run.run_id).info.status == "FINISHED"


def test_a_server_that_is_away_from_the_start(
    server: Server,
    start: Start,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0.0)
    run = start(section={"tracking_uri": server.uri})
    assert str(run.run_id).startswith("local-")
    run.log_metrics({"train/loss": 1.0}, 1)
    run.finish("KILLED")
    resumed = start(section={"tracking_uri": server.uri}, run_id=run.run_id)
    resumed.log_metrics({"train/loss": 5.0}, 1)
    resumed.log_metrics({"train/loss": 0.5}, 2)
    resumed.finish("FAILED", "disk full")
    assert "does not answer" in caplog.text

    run_id = replay(tmp_path / "run", uri)
    result = MlflowClient(uri).get_run(run_id)
    assert history(uri, run_id, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert (result.info.status, result.data.tags["error"]) == ("FAILED", "disk full")
    assert result.data.params["method.name"] == "sk_prefix"


def test_replay_of_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_module.main([str(tmp_path)]) == 1
    assert "no such file; give the output.dir" in capsys.readouterr().err


def test_http_defaults_are_short_but_the_users_stay(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    open_client(uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def test_a_first_start_with_sqlite_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str], start: Start) -> None:
    logging.getLogger("alembic").setLevel(logging.INFO)
    start(section={"tracking_uri": f"sqlite:///{tmp_path}/a/b/mlflow.db"})
    assert (tmp_path / "a" / "b" / "mlflow.db").is_file()
    captured = capfd.readouterr()
    assert "INFO" not in captured.out + captured.err


# --- several first starts, and stores of artifacts -------------------------------------------------------


_FIRST_START = """
import sys
from pathlib import Path
from sktune.sections import TrackingSection
from sktune.tracking import start_tracking
run = start_tracking(
    TrackingSection(tracking_uri=sys.argv[1], experiment_name="shared"),
    recipe_params={}, tags={}, run_name="r", run_id=None, output_dir=Path(sys.argv[2]), is_main=True,
)
run.finish("FINISHED")
"""


def test_several_first_starts_share_one_new_database(tmp_path: Path) -> None:
    new = tmp_path / "new" / "mlflow.db"
    new.parent.mkdir()
    (new.parent / "mlflow.db.making").write_bytes(b"what a killed start has left")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _FIRST_START, f"sqlite:///{new}", str(tmp_path / f"run{number}")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    client = MlflowClient(f"sqlite:///{new}")
    experiment = client.get_experiment_by_name("shared")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3


@pytest.mark.parametrize(
    ("location", "reason"),
    [("s3://bucket/x", "install boto3 with pip"), ("file:///dev/null/art", "start the server with --serve-artifacts")],
)
def test_a_store_that_takes_no_files_costs_the_files_alone(
    start: Start,
    uri: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    reason: str,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    MlflowClient(uri).create_experiment("elsewhere", artifact_location=location)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="sktune"):
        run = start(section={"experiment_name": "elsewhere"})
        run.log_metrics({"train/loss": 2.0}, 1)
        (tmp_path / "file.txt").write_text("kept here")
        run.log_artifact(tmp_path / "file.txt")
        run.finish("FINISHED")
    assert time.monotonic() - begun < tracker.FINISH_SECONDS / 2
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("sktune")]
    assert location in warning
    assert reason in warning
    assert history(uri, run.run_id, "train/loss") == [(1, 2.0)]
    assert MlflowClient(uri).get_run(run.run_id).info.status == "FINISHED"
    with pytest.raises(UserError, match="did not take the run"):
        replay(tmp_path / "run")


def test_a_start_on_an_unusable_store_leaves_no_running_record(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain folder"):
        start(section={"tracking_uri": "mlruns"})
    assert Record.load(tmp_path / "run").state.status == "FAILED"


def test_a_refused_start_ends_what_it_has_made(
    start: Start, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    with pytest.raises(UserError, match="disk full"):
        start()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FAILED"
    assert Record.load(tmp_path / "run").state.status == "FAILED"


# --- figures ---------------------------------------------------------------------------------------------


def _ink(path: Path) -> float:
    """Share of pixels that are not white, so that an empty figure does not pass."""
    from matplotlib.image import imread

    return float((imread(path)[..., :3].min(axis=-1) < 0.95).mean())


@pytest.mark.parametrize("size", [2, 9, 40])
def test_confusion_matrix_figure(tmp_path: Path, size: int) -> None:
    labels = [f"B-LABEL{index}" for index in range(size)]
    path = confusion_matrix_figure(labels * 2, labels + labels[::-1], labels, tmp_path / "new" / "cm.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert _ink(path) > 0.02


def test_confusion_matrix_refuses_unequal_lengths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 references, 1 predictions"):
        confusion_matrix_figure(["a", "b"], ["a"], ["a", "b"], tmp_path / "cm.png")


def _inches(path: Path) -> tuple[float, float]:
    from matplotlib.image import imread

    height, width = imread(path).shape[:2]
    return width / 120, height / 120


@pytest.mark.parametrize("size", [100, 1500])
def test_figures_are_bounded_whatever_the_number_of_labels(tmp_path: Path, size: int) -> None:
    labels = [f"class_{index:04d} of a long, long family of names that goes on" for index in range(size)]
    matrix = confusion_matrix_figure(labels, labels[::-1], labels, tmp_path / "cm.png")
    bars = per_type_f1_figure({name: {"f1": 0.5, "support": 1} for name in labels}, tmp_path / "f1.png")
    for path in (matrix, bars):
        assert max(_inches(path)) <= 20
        assert _ink(path) > 0.02


def test_the_labels_confused_most_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(figures, "_name_ticks", lambda axes, which, names: shown.append(list(names)))
    labels = [f"c{index:03d}" for index in range(200)]
    confused = [*labels, "c150", "c150", "new"]
    confusion_matrix_figure(confused, [*labels, "c180", "c180", "c003"], labels, tmp_path / "cm.png")
    columns, rows = shown
    assert len(rows) == figures.MAX_LABELS + 1
    assert {"c003", "c150", "c180"} <= set(columns)
    assert rows[-1] == "(other)"  # the right ones of the 160 others, and the reference that training does not know


def test_references_outside_the_labels_are_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, list[str]] = {}
    monkeypatch.setattr(figures, "_name_ticks", lambda axes, which, names: shown.update({which: list(names)}))
    confusion_matrix_figure(["1", "0"], ["neg", "pos"], ["neg", "pos"], tmp_path / "cm.png")
    assert shown == {"x": ["neg", "pos"], "y": ["neg", "pos", "(other)"]}


@pytest.mark.parametrize("name", ["$10_$20", "$x_{", r"$\frac$", "a\nb"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    path = confusion_matrix_figure([name, "b"], ["b", "b"], [name, "b"], tmp_path / "cm.png")
    assert _ink(path) > 0.02
    assert _ink(per_type_f1_figure({name: {"f1": 0.5, "support": 1}}, tmp_path / "f1.png")) > 0.02


def test_per_type_f1_figure(tmp_path: Path) -> None:
    report = {
        "PER": {"f1-score": 0.9, "support": 10},
        "LOC": {"f1": 0.0},
        "micro avg": {"f1-score": 0.5, "support": 10},
    }
    full = _ink(per_type_f1_figure(report, tmp_path / "f1.png"))
    assert full > _ink(per_type_f1_figure({**report, "PER": {"f1-score": 0.1}}, tmp_path / "low.png"))
    with pytest.raises(ValueError, match="no entity type"):
        per_type_f1_figure({"macro avg": {"f1-score": 0.5}}, tmp_path / "none.png")
