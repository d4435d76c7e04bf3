"""`task.class_weights` and `task.label_smoothing`: the loss of training, exact however batches are cut."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from tiny_models import TEXT, tiny_network, tiny_tokenizer
from torch.nn import functional as F
from training_fixtures import TASKS, Sections, Workshop, assert_close_run, assert_same_run, cut_back

import sktune
from sktune.errors import UserError
from sktune.recipe import RecipeError
from sktune.tasks.heads import SequenceHead
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig

WEIGHED: Sections = {"task": {"class_weights": "balanced", "label_smoothing": 0.1}}
CLASS_TASKS = ("token", "sequence", "pair")


def test_a_weighed_loss_is_torchs_in_training_and_the_plain_one_in_evaluation() -> None:
    torch.manual_seed(0)
    head = SequenceHead(8, 3, "last")
    head.weigh([0.5, 1.0, 4.0], 0.2)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 2, 0])
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.2, reduction="sum")
    assert torch.equal(head.train().loss(logits, labels), expected)
    assert torch.equal(head.eval().loss(logits, labels), F.cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 5.0]])
def test_the_head_starts_where_the_weighed_loss_of_a_constant_answer_is_least(
    weights: list[float] | None, smoothing: float
) -> None:
    head = SequenceHead(8, 3, "last").train()
    head.weigh(weights, smoothing)
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    head.set_prior(labels)
    logits = head.classifier.bias.detach().expand(len(labels), -1).clone().requires_grad_()
    head.loss(logits, labels).backward()
    assert logits.grad is not None
    # Every class is counted once more than it occurs, which is what is left.
    assert float(logits.grad.sum(0).abs().max()) < 5.0


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_a_weighed_run_does_not_depend_on_how_batches_are_cut(workshop: Workshop, task: str) -> None:
    changes = (TASKS[task], WEIGHED)
    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    workshop.train("whole", *changes, {"training": {"per_device_train_batch_size": 4}})
    workshop.train("cut", *changes, {"training": shape})
    assert_close_run(workshop.output("whole"), workshop.output("cut"))
    workshop.train("plain", TASKS[task], {"training": {"per_device_train_batch_size": 4}})
    losses = [json.loads((workshop.output(name) / "summary.json").read_text()) for name in ("whole", "plain")]
    assert losses[0]["validation/loss"] != losses[1]["validation/loss"]


def test_a_weighed_run_is_resumed_exactly(workshop: Workshop) -> None:
    changes = (TASKS["sequence"], WEIGHED)
    workshop.train("run", *changes)
    cut_back(workshop.output("run"), 4, workshop.output("resumed"))
    workshop.train("resumed", *changes, {"training": {"resume": "auto"}})
    assert_same_run(workshop.output("run"), workshop.output("resumed"))


def test_balanced_labels_count_the_same_together() -> None:
    config = SequenceClassificationConfig(class_weights="balanced")
    weights = config.weights(("a", "b", "c"), (6, 3, 0))
    assert weights is not None
    assert 6 * weights[0] == pytest.approx(3 * weights[1])
    assert weights[2] == 1.0


def test_weights_of_labels_that_there_are_not_are_refused(workshop: Workshop) -> None:
    weights: dict[str, Any] = {"class_weights": {"peple": 3.0}}
    with pytest.raises(UserError, match=r"class_weights names 'peple'.*people"):
        workshop.train("run", TASKS["sequence"], {"task": weights})
    assert not (workshop.output("run") / "adapter").exists()
    for wrong in ({"people": -1.0}, {"people": math.inf}, {}):
        with pytest.raises(RecipeError, match=r"task\.class_weights"):
            workshop.train("run", TASKS["sequence"], {"task": {"class_weights": wrong}})


def test_weights_in_a_loop_of_ones_own() -> None:
    def attached(**options: Any) -> sktune.AttachedModel:
        torch.manual_seed(0)
        task = SequenceClassificationConfig(**options)
        text = sktune.SKPrefixConfig(text=TEXT)
        model = tiny_network("llama")
        return sktune.attach(model, tiny_tokenizer(), text, task=task, labels=("no", "yes"), check_step_zero=False)

    ids = torch.arange(4, 12)[None]
    plain, weighed = (attached(**options).train() for options in ({}, {"class_weights": {"yes": 3.0}}))
    for label, factor in ((0, 1.0), (1, 3.0)):
        losses = [float(model(ids, labels=torch.tensor([label])).loss) for model in (plain, weighed)]
        assert losses[1] == pytest.approx(factor * losses[0])
    with pytest.raises(UserError, match=r"task\.class_weights: balanced counts the labels of the training data"):
        attached(class_weights="balanced")
