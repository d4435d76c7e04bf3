"""torch.compile of a tuned model: the same numbers, with every way of weaving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import DEPTH, TEXT, VOCABULARY_SIZE, perturb, tiny_network, tiny_tokenizer

import sktune
from sktune.methods.config import MethodConfig
from sktune.model.tuned_model import TunedModel

IDS = torch.arange(4, 16).view(2, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
LABELS = torch.tensor([0, 1])


def attached(method: MethodConfig) -> TunedModel:
    torch.manual_seed(0)
    tuned = sktune.attach(
        tiny_network("llama", "sdpa"), tiny_tokenizer(), method, task="sequence_classification", num_labels=2
    )
    perturb(tuned)
    return tuned


@pytest.mark.parametrize(
    "method",
    [sktune.SKPrefixConfig(text=TEXT), sktune.LlamaAdapterConfig(layers=DEPTH), sktune.BottleneckAdapterConfig()],
    ids=lambda method: method.name,
)
def test_a_compiled_model_gives_the_same_numbers(method: MethodConfig) -> None:
    torch.compiler.reset()
    tuned = attached(method)
    compiled: Any = torch.compile(tuned, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(IDS, MASK).logits, tuned(IDS, MASK).logits)
    losses, gradients = [], []
    for model in (tuned, compiled):
        tuned.zero_grad()
        loss = model(IDS, MASK, labels=LABELS).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in tuned.trainable_parameters().values()])
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *gradients))


def test_trainer_compiles_it(tmp_path: Path) -> None:
    rows = [{"input_ids": torch.randint(4, VOCABULARY_SIZE, (6,)), "labels": i % 2} for i in range(4)]
    trained = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        torch.compiler.reset()
        tuned = attached(sktune.SKPrefixConfig(text=TEXT))
        arguments = tf.TrainingArguments(
            str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", learning_rate=0.01, **settings
        )
        tf.Trainer(model=tuned, args=arguments, train_dataset=rows).train()
        trained.append(list(tuned.trainable_parameters().values()))
    assert all(map(torch.equal, *trained))
