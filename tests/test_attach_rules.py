"""What `sktune.attach` refuses: the rules of a recipe, in its words, and models that are no plain ones."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from tiny_models import TEXT, tiny_network, tiny_tokenizer

import sktune
from sktune.errors import UserError
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig

P = sktune.SKPrefixConfig(text=TEXT)


def attach(method: Any = P, *, family: str = "llama", language_model: bool = False, model: Any = None, **options: Any):
    settings = {"task": "sequence_classification", "num_labels": 2, **options}
    model = model or tiny_network(family, language_model=language_model)
    return sktune.attach(model, tiny_tokenizer(family in ("bert", "roberta")), method, **settings)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (sktune.PrefixTuningConfig(init="text"), ["method.text", "is needed to start from a text"]),
        (sktune.PromptTuningConfig(init="text", text="  "), ["method.text", "is needed to start from a text"]),
        (sktune.SKPrefixConfig(text=TEXT, trainable_text=True), ["method.trainable_text", "every_step"]),
        (sktune.SKPrefixConfig(text="   "), ["method.text", "is blank"]),
        (sktune.SKPromptConfig(text=TEXT, adapter="linear", rank=4), ["method.rank", "would do nothing"]),
        (sktune.LoraConfig(target_modules=("q_proj", "nothing")), ["method.target_modules", "'nothing'", "k_proj"]),
        (sktune.IA3Config(target_modules=("k_proj", "down_projj")), ["method.target_modules", "'down_projj'"]),
        (
            sktune.IA3Config(target_modules=("k_proj",), feedforward_modules=("down_proj",)),
            ["method.feedforward_modules", "names down_proj"],
        ),
        (sktune.PTuningConfig(anchors=("town",)), ["method.anchors", "would do nothing"]),
        (sktune.PTuningConfig(template=" "), ["method.template", "is blank"]),
        (sktune.PromptTuningConfig(text="x"), ["method.text", "would do nothing: init is vocabulary"]),
        (
            sktune.PrefixTuningConfig(init="text", text="x", reparametrize=True),
            ["method.reparametrize", "cannot start from those of a text"],
        ),
        (sktune.PrefixTuningConfig(layers=1), ["method.layers", "would do nothing"]),
        (sktune.PromptTuningConfig(init="labels"), ["method.init", "named labels"]),
    ],
)
def test_settings_that_a_recipe_refuses_are_refused_in_its_words(method: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        attach(method)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (sktune.LoraConfig(target_modules=("nothing",)), {}),
        (sktune.PrefixTuningConfig(init="text", text=TEXT, num_virtual_tokens=99), {}),
        (P, {"task": "causal_lm"}),
        (sktune.PromptTuningConfig(init="labels"), {}),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(method: Any, options: dict[str, Any]) -> None:
    model = tiny_network("llama").train()
    with pytest.raises(UserError):
        attach(method, model=model, **options)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert attach(model=model).parameters_to_train()


@pytest.mark.parametrize("method", [sktune.SKPrefixConfig(text=TEXT, adapter="identity"), sktune.HeadOnlyConfig()])
def test_what_would_train_nothing_is_refused(method: Any) -> None:
    with pytest.raises(UserError, match="nothing would be trained"):
        attach(method, language_model=True, task="causal_lm")
    assert attach(method).parameters_to_train()


def test_problems_are_told_all_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)method\.rank.*method\.activation"):
        attach(sktune.SKPrefixConfig(text=TEXT, adapter="linear", rank=4, activation="relu"))


def test_what_trains_the_models_weights_wants_them_in_float32() -> None:
    with pytest.raises(UserError, match=r"model\.dtype.*float32"):
        attach(sktune.FullFineTuningConfig(), model=tiny_network("llama", dtype=torch.bfloat16))


@pytest.mark.parametrize("count", [1, 0, -2, True, 2.0])
def test_one_class_is_no_classification(count: Any) -> None:
    with pytest.raises(UserError, match=r"num_labels.*2 or more.*regression"):
        attach(num_labels=count)


def test_labels_say_their_number_and_agree_with_it() -> None:
    tuned = attach(num_labels=None, labels=["bad", "good"])
    assert tuned.config.id2label == {0: "bad", 1: "good"}
    assert tuned.head.classifier.out_features == 2
    assert attach(num_labels=None, task=SequenceClassificationConfig(labels=("a", "b", "c"))).num_labels == 3
    for options, words in (
        ({"labels": ["bad", "good"], "num_labels": 3}, "is 3, and there are 2 labels"),
        ({"labels": ["bad", "bad"], "num_labels": None}, "each label once"),
        ({"labels": ["bad"], "num_labels": None}, "2 or more"),
        ({"labels": ["a"], "task": "regression"}, "would do nothing"),
        ({"labels": ["a", "b"], "task": SequenceClassificationConfig(labels=("c", "d"))}, "others than the task's own"),
        ({"num_labels": None}, "needs num_labels"),
    ):
        with pytest.raises(UserError, match=words):
            attach(**options)
    # A task is named once for several calls: the number of labels is no obstacle where there are none.
    assert attach(language_model=True, task="causal_lm").num_labels is None
    with pytest.raises(UserError, match=r"task\.label_words.*cannot tell the labels apart"):
        attach(language_model=True, task=CausalLMConfig(label_words={"a": "w1", "b": "w1"}))


def test_names_of_labels_start_a_prompt() -> None:
    tuned = attach(sktune.PromptTuningConfig(init="labels"), num_labels=None, labels=["w1", "w2 w3"])
    assert tuned.method.positions == 3


@pytest.mark.parametrize("task", [None, "sequence_classification"])
@pytest.mark.parametrize(
    "auto",
    [tf.AutoModelForSequenceClassification, tf.AutoModelForTokenClassification, tf.AutoModelForQuestionAnswering],
)
def test_a_model_with_a_head_of_its_own_is_refused(auto: Any, task: str | None) -> None:
    model = auto.from_config(tiny_network("llama").config)
    with pytest.raises(UserError, match=r"has a head of its own, which would stay frozen and unused.*AutoModel"):
        attach(model=model, task=task)


@pytest.mark.parametrize(
    "config",
    [peft.LoraConfig(target_modules=["q_proj"]), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")],
)
def test_a_model_of_peft_is_refused(config: Any) -> None:
    model = peft.get_peft_model(tiny_network("llama", language_model=True), config)
    with pytest.raises(UserError, match="peft"):
        attach(model=model)


# -- full fine-tuning: all that trains has a gradient --


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("bert", {"language_model": True}),
        ("llama", {"language_model": True}),
        ("gpt2", {"language_model": True}),
        ("llama", {"language_model": True, "task": "causal_lm"}),
        ("bert", {"task": "token_classification"}),
    ],
)
@pytest.mark.parametrize("method", [sktune.FullFineTuningConfig(), sktune.TopLayersConfig(layers=1)])
def test_all_that_trains_gets_a_gradient(family: str, options: dict[str, Any], method: Any) -> None:
    tuned = attach(method, family=family, **options)
    ids = torch.tensor([[9, 12, 7, 30, 14]])
    labels = ids % 2 if options.get("task") == "token_classification" else ids if "task" in options else ids[:, 0] % 2
    torch.nn.init.ones_(tuned.head.classifier.weight) if hasattr(tuned.head, "classifier") else None
    tuned(ids, labels=labels).loss.backward()
    assert [name for name, p in tuned.trainable_parameters().items() if p.grad is None] == []
    assert any(name.startswith("backbone.") for name in tuned.trainable_parameters())


def test_detaching_full_fine_tuning_gives_every_parameter_back_its_own_state() -> None:
    model = tiny_network("bert")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sktune.detach(attach(sktune.FullFineTuningConfig(), family="bert", model=model)) is model
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names
