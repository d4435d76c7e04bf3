"""Where a trained head starts: the prior of the labels, its input less what is common to the first global batches."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TEXT, WIDTH, batch, perturb, real_rows, tiny_backbone, tiny_network, tiny_tokenizer, tiny_tuned
from training_fixtures import (
    ONE_RANK,
    TASKS,
    TRAIN,
    Sections,
    Workshop,
    adapter,
    assert_close_run,
    checkpoint_weights,
    cut_back,
    points,
    summary_of,
)

import sktune
from sktune.answering import predict
from sktune.data import Collator
from sktune.inference import evaluate_run
from sktune.methods.full.config import FullFineTuningConfig
from sktune.methods.method import build_method
from sktune.model.adapter import read_adapter
from sktune.model.tuned_model import TunedModel, put_weights
from sktune.recipe import load_recipe
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig
from sktune.training.checkpoint import checkpoint_path
from sktune.training.evaluate import NOT_READ
from sktune.training.setup import prepare

WITH_HEAD = ("token", "sequence", "pair", "regression")
WHOLE: Sections = {"training": {"per_device_train_batch_size": TRAIN, "max_steps": 1}}
"""One global batch is the training split."""
STILL: Sections = {"training": {"learning_rate": 1e-30, "head_learning_rate": 1e-30, "weight_decay": 0.0}}
ONE_STEP: Sections = {"training": {"warmup_steps": 0, "eval_steps": 1, "max_steps": 1}}


def centre_of(output: Path, step: int) -> torch.Tensor:
    return checkpoint_weights(output, step)["head.centre"]


def training_labels(data: Path, task: str) -> list[Any]:
    """The labels of the training file, in the words of the file."""
    if task == "token":
        return [line.split()[1] for line in (data / "train.conll").read_text().splitlines() if line]
    file, column = {
        "sequence": ("train.jsonl", "label"),
        "pair": ("pairs_train.jsonl", "label"),
        "regression": ("train.jsonl", "score"),
    }[task]
    return [json.loads(line)[column] for line in (data / file).read_text().splitlines()]


# -- the prior --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sk_prefix", "head_only", "lora", "full"])
@pytest.mark.parametrize("task", WITH_HEAD)
def test_the_first_loss_is_that_of_the_best_answer_without_looking(
    workshop: Workshop, data_folder: Path, task: str, method: str
) -> None:
    changed: Sections = {} if method == "sk_prefix" else {"method": {"name": method, "text": ..., "rank": ...}}
    workshop.train("run", TASKS[task], changed, WHOLE, ONE_STEP)
    labels = training_labels(data_folder, task)
    if task == "regression":
        mean = sum(labels) / len(labels)
        expected = sum((label - mean) ** 2 for label in labels) / len(labels)
    else:
        counts = Counter(labels)
        classes = 5 if task == "token" else 2  # I-PER and I-LOC are in the label set, and nowhere else
        share = {label: (count + 1) / (len(labels) + classes) for label, count in counts.items()}
        expected = -sum(math.log(share[label]) for label in labels) / len(labels)
    assert points(workshop.output("run"))["train/loss", 1] == pytest.approx(expected, rel=1e-6)


def test_an_untrained_head_answers_with_the_labels_frequencies(workshop: Workshop, data_folder: Path) -> None:
    workshop.train("run", TASKS["sequence"], WHOLE, STILL, ONE_STEP)
    counts = Counter(training_labels(data_folder, "sequence"))
    for answer in predict(workshop.output("run"), ["w1 w2", "w15"], None, ONE_RANK):
        expected = {label: (count + 1) / (TRAIN + 2) for label, count in counts.items()}
        assert answer["probabilities"] == pytest.approx(expected, rel=1e-6)


def test_a_class_that_the_training_split_lacks_stays_possible(workshop: Workshop) -> None:
    labels = ["people", "places", "things"]
    workshop.train("run", TASKS["sequence"], {"task": {"labels": labels}}, WHOLE, STILL, ONE_STEP)
    (answer,) = predict(workshop.output("run"), ["w1 w2"], None, ONE_RANK)
    assert answer["probabilities"]["things"] == pytest.approx(1 / (TRAIN + 3), rel=1e-6)


def test_an_untrained_regression_answers_with_the_mean(workshop: Workshop, data_folder: Path) -> None:
    workshop.train("run", TASKS["regression"], WHOLE, STILL, ONE_STEP)
    scores = training_labels(data_folder, "regression")
    (answer,) = predict(workshop.output("run"), ["w1 w2"], None, ONE_RANK)
    assert answer["value"] == pytest.approx(sum(scores) / len(scores), rel=1e-6)


def test_the_prior_is_of_the_whole_training_split_not_of_a_batch(workshop: Workshop) -> None:
    workshop.train("whole", WHOLE, STILL, ONE_STEP)
    workshop.train("first", STILL, ONE_STEP, {"training": {"per_device_train_batch_size": 2}})
    bias = "head.classifier.bias"
    torch.testing.assert_close(adapter(workshop.output("first"))[bias], adapter(workshop.output("whole"))[bias])


# -- the centre -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_the_centre_is_the_mean_pooled_vector_of_the_rows_that_count(pooling: str, side: str) -> None:
    backbone = tiny_backbone("llama")
    task = "sequence_classification"
    tuned = tiny_tuned("sk_prefix", backbone, task, task_fields={"pooling": pooling, "head_dropout": 0.5})
    ids, mask = batch((9, 5, 2, 7), side)
    tuned.train().start_head({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([3, 0, -100, 0])})
    assert tuned.training
    vectors = []
    with torch.no_grad():
        for row in (0, 1, 3):
            alone = ids[row][mask[row].bool()][None]
            hidden = backbone.read(backbone.embed(alone), torch.ones_like(alone), tuned.eval().method(backbone))[0]
            vectors.append({"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[pooling])
    torch.testing.assert_close(tuned.head.centre, torch.stack(vectors).mean(0), atol=1e-5, rtol=0)
    assert not tuned.head.classifier.weight.any()
    expected = torch.tensor([3 / 7, 1 / 7, 1 / 7, 2 / 7])  # each class is counted once more than it occurs
    torch.testing.assert_close(tuned.head.classifier.bias.exp(), expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_centre_of_tokens_is_the_mean_of_the_positions_that_count(side: str) -> None:
    backbone = tiny_backbone("llama")
    tuned = tiny_tuned("sk_prefix", backbone)
    ids, mask = batch(side=side)
    labels = torch.where((mask == 1) & (ids % 3 != 0), ids % 4, -100)
    tuned.start_head({"input_ids": ids, "attention_mask": mask, "labels": labels})
    straight, straight_mask = batch()
    with torch.no_grad():
        hidden = backbone.read(backbone.embed(straight), straight_mask, tuned.method(backbone))
    counted = real_rows(labels, mask) != -100
    expected = real_rows(hidden, straight_mask)[counted].mean(0)
    torch.testing.assert_close(tuned.head.centre, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", WITH_HEAD)
def test_the_centre_is_of_the_global_batch_however_it_is_cut(workshop: Workshop, task: str) -> None:
    # 22 rows, read twice; 3 does not divide them, so the last micro batch is short or empty.
    for micro, accumulation in ((22, 1), (1, 22), (3, 8)):
        shape: Sections = {
            "training": {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation},
            # Of what is random nothing is seen: the reading is as in evaluation.
            "method": {"dropout": 0.0 if micro == 22 else 0.3},
            "task": {"head_dropout": 0.0 if micro == 22 else 0.3},
        }
        workshop.train(f"run{micro}", TASKS[task], ONE_STEP, shape)
    whole = centre_of(workshop.output("run22"), 1)
    assert whole.shape == (WIDTH,) and whole.abs().max() > 0.1
    for micro in (1, 3):
        torch.testing.assert_close(centre_of(workshop.output(f"run{micro}"), 1), whole, atol=1e-6, rtol=1e-6)


def test_a_class_that_the_first_batch_lacks_is_trained_alike_however_it_is_cut(workshop: Workshop) -> None:
    """Its first gradient is small; were it rounding alone, AdamW would make full steps of that."""
    workshop.train("whole")  # batches of 4 rows; I-PER and I-LOC occur in none
    cut: Sections = {"training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}}
    workshop.train("parts", cut)
    assert_close_run(workshop.output("whole"), workshop.output("parts"))


def test_the_centre_is_constant_over_a_run_and_its_resumption(workshop: Workshop) -> None:
    workshop.train("whole")
    first = centre_of(workshop.output("whole"), 4)
    assert torch.equal(centre_of(workshop.output("whole"), 8), first)
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    workshop.train("parts", {"training": {"resume": "auto"}})
    assert torch.equal(centre_of(workshop.output("parts"), 8), first)


def test_what_all_inputs_have_in_common_does_not_move_the_logits(workshop: Workshop) -> None:
    curves = []
    for shift in (0.0, 30.0):
        tuned = tiny_tuned("sk_prefix", tiny_backbone("bert"), "sequence_classification")
        with torch.no_grad():
            tuned.backbone.blocks[-1].output.LayerNorm.bias.add_(shift)
        ids, mask = batch((9, 5, 2, 7))
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([3, 0, 1, 0])}
        tuned.start_head(inputs)
        optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=1e-2)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = tuned(**inputs).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_zero_weights_keep_the_gradient_from_the_model_for_one_step_only() -> None:
    backbone = tiny_backbone("llama")
    method = build_method(FullFineTuningConfig(), backbone, tiny_tokenizer())
    model = TunedModel(backbone, method, build_task(TokenClassificationConfig()).head(backbone, 4))
    ids, mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids % 4, -100)}
    model.start_head(inputs)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-3)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        assert loss is not None
        loss.backward()
        gradients = [p.grad for p in model.backbone.blocks[0].parameters()]
        reached.append(all(gradient is not None and bool(gradient.any()) for gradient in gradients))
        optimizer.step()
    assert reached == [False, True]


# -- what is saved ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", WITH_HEAD)
def test_a_saved_adapter_answers_as_the_checkpoint_it_was_made_of(workshop: Workshop, task: str) -> None:
    workshop.train("run", TASKS[task])
    output = workshop.output("run")
    step = summary_of(output)["best_step"]
    kept, saved = checkpoint_weights(output, step), read_adapter(output / "adapter")[0]
    assert set(kept) == set(saved) | {"head.centre"}
    assembly = prepare(load_recipe(output / "recipe.yaml"), ONE_RANK)
    assert set(saved) == set(assembly.model.trainable_parameters())  # the format of adapters knows no centre
    assert assembly.raw is not None and assembly.raw.test is not None
    rows = assembly.encode(assembly.raw.test, "test").rows
    collate = Collator(1, "right", assembly.task)
    inputs = {name: value for name, value in collate(rows).items() if name not in NOT_READ}
    logits = []
    with torch.no_grad():
        for weights in (kept, saved):
            put_weights(assembly.model, weights, "test")
            logits.append(assembly.model.eval()(**inputs).logits)
    assert (kept["head.classifier.weight"] @ kept["head.centre"]).abs().max() > 1e-3  # there is something to fold
    torch.testing.assert_close(logits[1], logits[0], atol=2e-6 * max(1.0, float(logits[0].abs().max())), rtol=0)
    found = evaluate_run(output, "test", ONE_RANK)
    assert found["loss"] == pytest.approx(summary_of(output)["test/loss"], rel=1e-5)


def test_a_checkpoint_from_before_there_was_a_centre_goes_on_without_one(workshop: Workshop) -> None:
    workshop.train("run")
    file = checkpoint_path(workshop.output("run"), 8) / "adapter.safetensors"
    old = {name: tensor for name, tensor in load_file(file).items() if name != "head.centre"}
    save_file(old, file)
    longer: Sections = {"training": {"resume": "auto", "max_steps": 9}}
    workshop.train("run", longer)
    assert not centre_of(workshop.output("run"), 9).any()


# -- from Python ------------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_starts_the_head_with_a_batch(tmp_path: Path) -> None:
    def attached() -> Any:
        method = sktune.SKPromptConfig(text=TEXT)
        task = {"task": "token_classification", "num_labels": 4}
        return sktune.attach(tiny_network("llama"), tiny_tokenizer(), method, **task).eval()

    tuned = attached()
    ids, mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids % 4, -100)}
    tuned.start_head(inputs, labels=torch.tensor([0, 0, 0, 0, 0, 1, 2]))
    expected = torch.tensor([6, 2, 2, 1]) / 11
    torch.testing.assert_close(tuned(ids, mask).logits[0, 0].softmax(0), expected)
    perturb(tuned)
    logits = tuned(ids, mask).logits
    folder = sktune.save_adapter(tuned, tmp_path / "adapter")
    assert "head.centre" not in load_file(folder / "adapter.safetensors")
    fresh = attached()
    fresh.start_head(inputs)
    again = sktune.load_adapter(fresh, folder)(ids, mask).logits
    torch.testing.assert_close(real_rows(again, mask), real_rows(logits, mask), atol=1e-5, rtol=0)


def test_what_cannot_be_started_says_why() -> None:
    ids, mask = batch()
    with pytest.raises(ValueError, match="start_head: the batch has no labels"):
        tiny_tuned("sk_prompt", tiny_backbone("llama")).start_head({"input_ids": ids, "attention_mask": mask})
    language = tiny_tuned("sk_prompt", tiny_backbone("llama", language_model=True), "causal_lm")
    with pytest.raises(ValueError, match="start_head: this model has no head"):
        language.start_head({"input_ids": ids, "labels": ids})
