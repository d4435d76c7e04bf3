"""Several labels for each text: reading, the head, scores, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import ONE_RANK, ROOT, TASKS, TEST, Start, Workshop, deepspeed_command, summary_of

from sktune.answering import predict
from sktune.comparison.floor import constant_answer
from sktune.data import Collator, RawSplits, Row, load_splits
from sktune.inference import evaluate_run
from sktune.planning.activations import count_activations
from sktune.planning.skeleton import find_skeleton
from sktune.planning.trained_bytes import Engine
from sktune.recipe import load_recipe
from sktune.sections import DataSection
from sktune.tasks.multi_label.config import MultiLabelConfig
from sktune.tasks.multi_label.metrics import label_metrics
from sktune.tasks.multi_label.task import MultiLabelHead
from sktune.tasks.task import build_task

TASK = build_task(MultiLabelConfig())


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(folder: Path, task: MultiLabelConfig | None = None, **fields: Any) -> RawSplits:
    data = DataSection(**{"path": str(folder), "train": "train", "validation": None, **fields})
    return load_splits(data, build_task(task or MultiLabelConfig()))


# -- reading ----------------------------------------------------------------------------------------------------


def test_lists_and_separated_texts_are_the_same_labels(tmp_path: Path) -> None:
    lists, texts = tmp_path / "lists", tmp_path / "texts"
    for folder, labels in ((lists, [["b", "a"], [], ["c", "c"], None]), (texts, ["b| a", "", "c|c|", None])):
        folder.mkdir()
        write(folder, [{"text": f"t{i}", "label": of_row} for i, of_row in enumerate(labels)])
        splits = load(folder)
        assert [example.reference for example in splits.train] == [("b", "a"), (), ("c",)]
        assert splits.labels == ("a", "b", "c")
        assert "train: 1 rows without a label dropped" in splits.report
    (texts / "comma.csv").write_text('text,label\nx,"a,b"\ny,\nz,b\n', encoding="utf-8")
    splits = load(texts, MultiLabelConfig(label_separator=","), train="comma.csv")
    assert [example.reference for example in splits.train] == [("a", "b"), (), ("b",)]


def test_numbers_take_their_names_from_the_recipe_and_what_is_no_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "x", "label": [1, 0]}, {"text": "y", "label": [1]}])
    named = load(tmp_path, MultiLabelConfig(labels=("joy", "anger")))
    assert [example.reference for example in named.train] == [("anger", "joy"), ("anger",)]
    write(tmp_path, [{"text": "x", "label": ["joy", "fear"]}])
    with pytest.raises(ValueError, match=r"row 0: label 'fear' is not in task\.labels \(joy, anger\)"):
        load(tmp_path, MultiLabelConfig(labels=("joy", "anger")))
    write(tmp_path, [{"text": "x", "label": 0.5}])
    with pytest.raises(ValueError, match=r"row 0: data\.label_column must hold a list .* not 0\.5"):
        load(tmp_path)
    write(tmp_path, [{"text": "x", "label": []}])
    with pytest.raises(ValueError, match="the training split holds no label"):
        load(tmp_path)


# -- the head ---------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_binary_cross_entropy_and_fillers_do_not_count() -> None:
    torch.manual_seed(0)
    head = MultiLabelHead(8, 3, "mean")
    torch.nn.init.normal_(head.classifier.weight)
    states, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.long)
    rows = [Row(0, [1] * 4, None, [1.0, 0.0, 1.0], ["a", "c"]), None]
    labels = Collator(0, "right", TASK)(rows)["labels"]
    assert labels[0].tolist() == [1, 0, 1]
    scored = head(states, mask, labels, {})
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scored.logits[0], labels[0])
    assert scored.labelled == rows[0].labelled == 3  # type: ignore[union-attr]
    torch.testing.assert_close(scored.loss_sum / scored.labelled, expected)
    alone = head(states, mask, Collator(0, "right", TASK)([None, None])["labels"], {})
    alone.loss_sum.backward()
    assert (alone.loss_sum.item(), alone.labelled.item()) == (0, 0)
    assert not head.classifier.weight.grad.any()


def test_the_head_starts_at_each_labels_frequency() -> None:
    head = MultiLabelHead(8, 3, "mean")
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [torch.nan] * 3])
    head.set_prior(labels)
    torch.testing.assert_close(head.classifier.bias.sigmoid(), torch.tensor([4 / 5, 2 / 5, 1 / 5]))


# -- scores -----------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    truth, found = [["a"], ["a", "b"], [], ["b", "new"]], [["a"], ["a", "c"], [], ["b"]]
    overall, per_label = label_metrics(truth, found, ("a", "b", "c"))
    # right: a, a, b; wrong: c; not found: b, new
    assert overall["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert overall["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert overall["exact_match"] == 0.5
    assert per_label["b"] == {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "support": 2}
    assert per_label["c"]["support"] == 0


def test_the_floor_is_the_constant_set_with_the_best_micro_f1(tmp_path: Path) -> None:
    labels = [["a", "b"], ["a"], ["b", "a"], ["c"], []]
    write(tmp_path, [{"text": "x", "label": of_row} for of_row in labels])
    write(tmp_path, [{"text": "x", "label": ["a"]}, {"text": "x", "label": ["c"]}], "test.jsonl")
    found = constant_answer(load(tmp_path, test="test"), TASK)
    assert found is not None
    # always a: 2 * 3 / (5 + 6); a and b: 2 * 5 / (10 + 6); all: 2 * 6 / (15 + 6)
    assert found["name"] == "always a, b"
    assert found["test"]["micro_f1"] == pytest.approx(2 * 1 / (2 * 1 + 3 + 1))


# -- runs -------------------------------------------------------------------------------------------------------


SECTIONS = TASKS["several"]


def test_a_run_is_scored_reported_and_used(workshop: Workshop) -> None:
    workshop.train("run", SECTIONS)
    output = workshop.output("run")
    summary = summary_of(output)
    assert {f"test/{name}" for name in MultiLabelConfig().metrics()} <= set(summary)
    scored = evaluate_run(output, "test", ONE_RANK)
    assert scored["loss"] == pytest.approx(summary["test/loss"], rel=1e-6)
    assert set(scored["per_type"]) == {"people", "places"}
    records = [json.loads(line) for line in (output / "predictions" / "test.jsonl").read_text().splitlines()]
    assert len(records) == TEST
    for record in records:
        likely = [label for label, share in record["probabilities"].items() if share >= 0.5]
        assert record["prediction"] == likely
    (answer,) = predict(output, ["w1 w2"], None, ONE_RANK)
    assert answer["labels"] == [label for label, share in answer["probabilities"].items() if share >= 0.5]
    assert answer.line.startswith("w1 w2\n  -> ")


def test_batches_cut_differently_are_one_trajectory(workshop: Workshop) -> None:
    losses, weights = [], []
    for micro in (4, 1):
        shape = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        losses.append(workshop.train(f"run{micro}", SECTIONS, {"training": shape})["validation/loss"])
        weights.append(load_file(workshop.output(f"run{micro}") / "adapter" / "adapter.safetensors"))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=0)


@pytest.mark.distributed
def test_two_processes_under_deepspeed_train_what_one_trains(workshop: Workshop, start: Start) -> None:
    alone = workshop.train("alone", SECTIONS)
    half = {"per_device_train_batch_size": 2}
    recipe = workshop.write("shared", SECTIONS, {"training": half})
    running = start(deepspeed_command(ROOT / "launchers" / "train.py", "--recipe", recipe))
    assert running.wait(300) == 0, running.output()[-3000:]
    shared = summary_of(workshop.output("shared"))
    for name in MultiLabelConfig().metrics():
        assert shared[f"test/{name}"] == pytest.approx(alone[f"test/{name}"], abs=1e-4)
    one, two = (load_file(workshop.output(run) / "adapter" / "adapter.safetensors") for run in ("alone", "shared"))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


def test_it_is_planned(workshop: Workshop) -> None:
    recipe = load_recipe(workshop.write("run", SECTIONS))
    skeleton = find_skeleton(recipe)
    assert skeleton.labels == 8
    assert "the data has 8 labels (the recipe does not list them)" in skeleton.assumptions
    assert count_activations(skeleton, Engine(stage=2))["forward_peak"] > 0
