"""A task of another package: what docs/tasks.md says is enough."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from other_packages import QUICKSTART, run, write_package
from safetensors.torch import load_file
from training_fixtures import Start, deepspeed_command

SHORT = ("training.max_steps=8", "training.warmup_steps=1", "training.eval_steps=4", "tracking.enabled=false")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The files of docs/tasks.md, in a package of their own, and texts beside it of which a share said yes."""
    assert write_package("tasks.md", tmp_path) == ["my_tasks/share/config.py", "my_tasks/share/task.py", "my_sktune.py"]
    generator = random.Random(0)
    for split, rows in (("train", 48), ("dev", 10), ("test", 13)):
        lines = []
        for _ in range(rows):
            words = generator.choices(("yes", "no", "the", "is"), k=generator.randint(1, 9))
            lines.append(json.dumps({"text": " ".join(words), "agreed": words.count("yes") / len(words)}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "my_sktune.py"


def sections(script: Path) -> tuple[str, ...]:
    data = (
        f"{{path: {script.parent}, train: train.jsonl, validation: dev.jsonl, test: test.jsonl, label_column: agreed}}"
    )
    return ("task={name: share}", f"data={data}")


def test_a_folder_and_a_line_are_enough_to_train_score_plan_and_use_it(script: Path) -> None:
    output = script.parent / "run"
    trained = run(script, "train", QUICKSTART, f"output.dir={output}", *sections(script), *SHORT)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert {"test/spearman", "test/mse", "test/loss"} <= set(summary)
    assert load_file(output / "adapter" / "adapter.safetensors")["head.classifier.weight"].abs().max() > 0
    scored = run(script, "evaluate", str(output))
    assert scored.returncode == 0, scored.stderr
    found = json.loads((output / "evaluation" / "test.json").read_text(encoding="utf-8"))
    assert found["loss"] == pytest.approx(summary["test/loss"], abs=1e-6)
    answered = run(script, "predict", str(output), "--text", "yes yes", "--text", "no", "--json")
    assert answered.returncode == 0, answered.stderr
    shares = [json.loads(line)["share"] for line in answered.stdout.splitlines()]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    assert "-> share 0." in run(script, "predict", str(output), "--text", "no").stdout
    planned = run(script, "plan", QUICKSTART, *sections(script))
    assert planned.returncode == 0, planned.stderr


def test_its_mistakes_are_told_like_those_of_any_other(script: Path) -> None:
    def errors(*overrides: str) -> str:
        done = run(script, "validate", QUICKSTART, *sections(script), *overrides)
        assert done.returncode == 1
        return done.stderr

    assert "task.percent" in errors("task={name: share, percent: 3}")
    assert "did you mean task.percent?" in errors("task={name: share, precent: true}")
    assert "is a field of share, not of regression" in errors("task={name: regression, percent: true}")
    assert "spearman, pearson, mse, loss" in errors("training.metric_for_best_model=f1")
    assert "multi_label, share" in errors("task={name: shares}")
    wrong = run(script, "train", QUICKSTART, *sections(script), "output.dir=x", "data.label_column=text", *SHORT)
    assert wrong.returncode != 0
    assert "train.jsonl, row 0: a finite number is needed" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.distributed
def test_it_trains_under_zero3_as_in_one_process(script: Path, start: Start) -> None:
    alone, shared = script.parent / "alone", script.parent / "shared"
    done = run(script, "train", QUICKSTART, f"output.dir={alone}", *sections(script), *SHORT)
    assert done.returncode == 0, done.stderr
    cut = ("training.per_device_train_batch_size=8", f"output.dir={shared}")
    command = deepspeed_command(script, "train", QUICKSTART, *sections(script), *SHORT, *cut)
    command.insert(command.index(str(script)), "--no_local_rank")
    running = start(command)
    assert running.wait(300) == 0, running.output()[-3000:]
    one, two = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (alone, shared))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
