"""The tuned model in other packages' loops: transformers' Trainer, accelerate, TRL."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from tiny_models import TEXT, tiny_network, tiny_tokenizer
from torch.nn import functional as F

import sktune
from sktune.errors import UserError
from sktune.methods.config import MethodConfig
from sktune.model.attached import AttachedModel

P = sktune.SKPrefixConfig(text=TEXT)
METHODS = [P, sktune.SKPromptConfig(text=TEXT), sktune.PromptTuningConfig(), sktune.LoraConfig(), sktune.IA3Config()]
each_method = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])


def tuned_on(method: MethodConfig = P, family: str = "llama", *, seed: int = 0, **options: Any) -> AttachedModel:
    settings = {"task": "sequence_classification", "num_labels": 2, **options}
    torch.manual_seed(seed)
    network = tiny_network(family, "sdpa", language_model=settings["task"] == "causal_lm")
    return sktune.attach(network, tiny_tokenizer(), method, **settings)


def rows(count: int = 16, task: str = "sequence_classification") -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        ids = torch.randint(4, 100, (6,), generator=generator)
        labels = {"sequence_classification": ids[0] % 2, "token_classification": ids % 2, "causal_lm": ids}[task]
        made.append({"input_ids": ids, "labels": labels.clone()})
    return made


def arguments(folder: Path, **options: Any) -> tf.TrainingArguments:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        **options,
    }
    return tf.TrainingArguments(str(folder), **settings)


def weights_of(tuned: AttachedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tuned.trainable_parameters().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# -- what a state is --


@each_method
def test_a_state_is_what_was_trained_and_gives_the_model_again(method: MethodConfig) -> None:
    tuned = tuned_on(method).eval()
    with torch.no_grad():
        for parameter in tuned.parameters_to_train():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tuned.head.centre.fill_(0.3)
    state = tuned.state_dict()
    assert {*tuned.trainable_parameters(), "head.centre"} <= state.keys()
    assert sum(tensor.numel() for tensor in state.values()) < 1.1 * tuned.parameter_counts()[0] + 100
    fresh = tuned_on(method, seed=5).eval()
    ids = rows(1)[0]["input_ids"][None]
    with torch.no_grad():
        assert not torch.equal(fresh(ids).logits, tuned(ids).logits)
        found = fresh.load_state_dict(state)
        assert (found.missing_keys, found.unexpected_keys) == ([], [])
        assert torch.equal(fresh(ids).logits, tuned(ids).logits)


def test_a_state_inside_another_module_is_what_was_trained_too() -> None:
    tuned = tuned_on()
    averaged = torch.optim.swa_utils.AveragedModel(tuned)
    state = averaged.state_dict()
    assert {name.removeprefix("module.") for name in state} == {*tuned.state_dict(), "n_averaged"}
    torch.optim.swa_utils.AveragedModel(tuned_on(seed=5)).load_state_dict(state)


def test_a_state_that_lacks_what_trains_or_says_more_is_an_error() -> None:
    tuned = tuned_on()
    state = tuned.state_dict()
    name = next(iter(tuned.trainable_parameters()))
    with pytest.raises(RuntimeError, match=rf"Missing key.*\n?.*{name}"):
        tuned.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match="unheard_of"):
        tuned.load_state_dict({**state, "unheard_of": torch.zeros(1)})
    assert tuned.load_state_dict({**state, "unheard_of": torch.zeros(1)}, strict=False).unexpected_keys == [
        "unheard_of"
    ]


# -- transformers.Trainer --


@each_method
def test_a_checkpoint_holds_what_trains_and_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, method: MethodConfig
) -> None:
    whole = tuned_on(method)
    saved = {"save_strategy": "steps", "save_steps": 2}
    tf.Trainer(model=whole, args=arguments(tmp_path, **saved), train_dataset=rows()).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert load_file(checkpoint / "model.safetensors").keys() == whole.state_dict().keys()
    resumed = tuned_on(method, seed=5)
    tf.Trainer(model=resumed, args=arguments(tmp_path / "again"), train_dataset=rows()).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert_same(weights_of(resumed), weights_of(whole))
    if method.name == "prompt_tuning":
        assert torch.equal(resumed.method.tokens.input_ids, whole.method.tokens.input_ids)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    tuned = tuned_on()
    trainer = tf.Trainer(
        model=tuned,
        args=arguments(
            tmp_path,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,  # so that the first step is the best one
        ),
        train_dataset=rows(),
        eval_dataset=rows(8),
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-4"
    state = load_file(best / "model.safetensors")
    assert_same(weights_of(tuned), {name: state[name] for name in tuned.trainable_parameters()})


@pytest.mark.parametrize("method", [sktune.SKPromptConfig(text=TEXT), sktune.FullFineTuningConfig()])
def test_a_model_with_tied_weights_is_saved(tmp_path: Path, method: MethodConfig) -> None:
    tuned = tuned_on(method, "gpt2", task="causal_lm")
    trainer = tf.Trainer(model=tuned, args=arguments(tmp_path, max_steps=1), train_dataset=rows(task="causal_lm"))
    trainer.train()
    trainer.save_model()
    fresh = tuned_on(method, "gpt2", seed=5, task="causal_lm")
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ids = rows(1)[0]["input_ids"][None]
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids).logits, tuned.eval()(ids).logits)


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification", "causal_lm"])
def test_smoothed_labels_are_those_of_the_right_positions(tmp_path: Path, task: str) -> None:
    tuned, epsilon = tuned_on(task=task).eval(), 0.1
    data = rows(4, task)
    options = {"label_smoothing_factor": epsilon, "max_steps": 1, "learning_rate": 0.0}
    trainer = tf.Trainer(model=tuned, args=arguments(tmp_path, **options), train_dataset=data)
    trainer.train()
    ids, labels = torch.stack([row["input_ids"] for row in data]), torch.stack([row["labels"] for row in data])
    with torch.no_grad():
        logits = tuned.eval()(ids).logits
    if task == "causal_lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=epsilon, reduction="sum")
    count = labels.numel()
    logged = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert logged == pytest.approx(float(expected) / count, rel=1e-3)


def test_several_labels_and_numbers_are_configured_as_transformers_names_them() -> None:
    assert tuned_on(task="multi_label").config.problem_type == "multi_label_classification"
    assert tuned_on(task="regression").config.problem_type == "regression"
    tuned = tuned_on(labels=["bad", "good"])
    assert tuned.config.problem_type == "single_label_classification"
    assert tuned.config.label2id == {"bad": 0, "good": 1}
    assert tuned.backbone.config.id2label != tuned.config.id2label, "the owner's configuration is not touched"


# -- accelerate --


def test_accelerate_prepares_saves_and_loads_a_state(tmp_path: Path) -> None:
    def run(resume: bool, seed: int) -> dict[str, torch.Tensor]:
        accelerator = accelerate.Accelerator(cpu=True)
        tuned = tuned_on(seed=seed)
        optimizer = torch.optim.AdamW(tuned.parameters_to_train(), lr=1e-2)
        model, optimizer = accelerator.prepare(tuned, optimizer)
        if resume:
            accelerator.load_state(str(tmp_path))
        for step in range(2 if resume else 0, 4):
            if step == 2 and not resume:
                accelerator.save_state(str(tmp_path))
            batch = rows(4 * step + 4)[4 * step :]
            stacked = {key: torch.stack([row[key] for row in batch]) for key in batch[0]}
            accelerator.backward(model(**stacked).loss)
            optimizer.step()
            optimizer.zero_grad()
        return weights_of(accelerator.unwrap_model(model))

    whole = run(False, 0)
    assert_same(run(True, 5), whole)
    assert load_file(tmp_path / "model.safetensors").keys() == tuned_on().state_dict().keys()


# -- TRL --

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed (pip install trl)")


@needs_trl
@pytest.mark.parametrize("method", [P, sktune.SKPromptConfig(text=TEXT), sktune.LoraConfig()])
def test_trls_trainer_takes_the_step_that_a_plain_loop_takes(tmp_path: Path, method: MethodConfig) -> None:
    import datasets
    import trl

    data = [{"text": " ".join(f"w{(7 * i + j) % 60}" for j in range(4 + i))} for i in range(4)]
    tuned = tuned_on(method, task="causal_lm")
    plain = copy.deepcopy(tuned)
    settings = trl.SFTConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        save_strategy="steps",
        save_steps=1,
    )
    trainer = trl.SFTTrainer(
        model=tuned, args=settings, train_dataset=datasets.Dataset.from_list(data), processing_class=tuned.tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    opens = method.name != "lora"
    assert (batch["input_ids"][:, 0] == tuned.tokenizer.bos_token_id).all() == (not opens)
    trainer.train()

    optimizer = torch.optim.SGD(plain.parameters_to_train(), lr=1.0)
    plain.train()(**batch).loss.backward()
    optimizer.step()
    for name, parameter in plain.trainable_parameters().items():
        torch.testing.assert_close(tuned.trainable_parameters()[name], parameter, atol=1e-5, rtol=1e-4)
    assert load_file(tmp_path / "checkpoint-1" / "model.safetensors").keys() == tuned.state_dict().keys()
    if opens:
        with pytest.raises(UserError, match=r"processing_class=tuned\.tokenizer"):
            tuned.base_model(input_ids=torch.tensor([[tuned.tokenizer.bos_token_id, 9, 12]]))
