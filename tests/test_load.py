"""A trained adapter's folder in a user's own Python: `sktune.load`, and folders that were saved from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from training_fixtures import BITS, ONE_RANK, TASKS, Workshop

import sktune
from sktune.answering import Answer, predict
from sktune.errors import UserError
from sktune.inference import evaluate_run, load_trained
from sktune.methods.config import MethodConfig
from sktune.model.attached import AttachedModel

TEXT = "find the names of people and places"
METHODS = [
    sktune.SKPrefixConfig(text=TEXT),
    sktune.SKPromptConfig(text=TEXT, trainable_text=True, semantics="every_step"),
    sktune.PromptTuningConfig(),
    sktune.PTuningConfig(),
    sktune.PrefixTuningConfig(),
    sktune.LoraConfig(),
    sktune.IA3Config(),
    sktune.BottleneckAdapterConfig(),
    sktune.LlamaAdapterConfig(),
    sktune.TopLayersConfig(layers=1),
    sktune.FullFineTuningConfig(),
    sktune.HeadOnlyConfig(),
]
IDS = torch.tensor([[9, 12, 7, 30, 14, 8]])


def perturbed(tuned: AttachedModel) -> AttachedModel:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters_to_train():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned.eval()


def attached(folder: Path, method: MethodConfig, auto: Any = tf.AutoModel, **options: Any) -> AttachedModel:
    settings = {"task": "sequence_classification", "num_labels": 2, **options}
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return perturbed(sktune.attach(model, tf.AutoTokenizer.from_pretrained(folder), method, **settings))


@torch.no_grad()
def logits(tuned: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return tuned(ids).logits


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_a_folder_saved_from_python_needs_nothing_else(model_folder: Path, tmp_path: Path, method) -> None:
    tuned = attached(model_folder, method)
    folder = tuned.save(tmp_path / "adapter")
    loaded = sktune.load(folder)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(tuned))
    assert list(loaded.trainable_parameters()) == list(tuned.trainable_parameters())
    again = loaded.save(tmp_path / "again")
    assert torch.equal(logits(sktune.load(again)), logits(tuned))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("causal_lm", {"auto": tf.AutoModelForCausalLM, "num_labels": None}),
        ("sequence_classification", {"auto": tf.AutoModelForCausalLM}),
        ("token_classification", {"labels": ["O", "B-PER"], "num_labels": None}),
        ("multi_label", {"num_labels": 3}),
        ("regression", {"num_labels": None}),
    ],
)
def test_every_task_comes_back(model_folder: Path, tmp_path: Path, task: str, options) -> None:
    tuned = attached(model_folder, sktune.SKPrefixConfig(text=TEXT), task=task, **options)
    loaded = sktune.load(tuned.save(tmp_path))
    assert torch.equal(logits(loaded), logits(tuned))
    assert loaded.config.id2label == tuned.config.id2label
    assert loaded.labels == tuned.labels


@pytest.mark.parametrize("task", [name for name in TASKS if name != "words"])
def test_a_runs_folder_gives_the_model_that_the_run_scored(workshop: Workshop, task: str) -> None:
    workshop.train("run", TASKS[task], {"training": {"max_steps": 2}})
    output = workshop.output("run")
    _, setup = load_trained(output, ONE_RANK)
    for folder in (output, output / "adapter"):
        assert torch.equal(logits(sktune.load(folder)), logits(setup.model.eval()))


def test_texts_are_read_through_the_runs_template_and_its_data_need_not_be_there(
    workshop: Workshop, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_DATA", str(data_folder))
    changes = {"data": {"path": "${SOME_DATA}", "text_template": "w7 {text} w8"}, "training": {"max_steps": 2}}
    workshop.train("run", TASKS["sequence"], changes)
    output = workshop.output("run")
    (answer,) = predict(output, ["w1 w2"], None, ONE_RANK)
    monkeypatch.delenv("SOME_DATA")
    for folder in (output, sktune.load(output).save(output / "python")):
        loaded = sktune.load(folder)
        assert loaded.encode("w1 w2")["input_ids"].shape[1] == 4
        found = logits(loaded, loaded.encode("w1 w2")["input_ids"]).softmax(-1)[0].tolist()
        assert dict(zip(loaded.labels, found, strict=True)) == pytest.approx(answer["probabilities"], abs=1e-6)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_quantized_model_is_quantized_again(workshop: Workshop, bits: str) -> None:
    workshop.train("run", TASKS["sequence"], {"quantization": BITS[bits], "training": {"max_steps": 2}})
    output = workshop.output("run")
    _, setup = load_trained(output, ONE_RANK)
    loaded = sktune.load(output)
    assert torch.equal(logits(loaded), logits(setup.model.eval()))
    assert torch.equal(logits(sktune.load(loaded.save(output / "python"))), logits(loaded))


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_model_that_transformers_quantized_is_loaded_in_the_same_bits(
    model_folder: Path, tmp_path: Path, bits: str
) -> None:
    settings = tf.BitsAndBytesConfig(**BITS[bits])
    tokenizer = tf.AutoTokenizer.from_pretrained(model_folder)
    for auto, task in ((tf.AutoModel, "sequence_classification"), (tf.AutoModelForCausalLM, "causal_lm")):
        model = auto.from_pretrained(model_folder, quantization_config=settings, dtype=torch.float32)
        tuned = perturbed(sktune.attach(model, tokenizer, sktune.SKPrefixConfig(text=TEXT), task=task, num_labels=2))
        loaded = sktune.load(tuned.save(tmp_path / task))
        torch.testing.assert_close(logits(loaded), logits(tuned), atol=0.05, rtol=0.05)
        assert any(p.dtype in (torch.int8, torch.uint8) for p in loaded.backbone.parameters())


def test_what_python_saved_is_predicted_and_scored_by_the_commands(
    model_folder: Path,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    tuned = attached(model_folder, sktune.SKPromptConfig(text=TEXT), labels=["people", "places"], num_labels=None)
    folder = tuned.save(tmp_path / "adapter")
    (answer,) = list(predict(folder, ["w1 w2 w30"], None, ONE_RANK))
    assert isinstance(answer, Answer)
    expected = logits(tuned, tuned.encode("w1 w2 w30")["input_ids"]).softmax(-1)[0].tolist()
    assert list(answer["probabilities"]) == ["people", "places"]
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
    scores = evaluate_run(folder, "test", ONE_RANK, [f"data.path={data_folder}", "data.test=test.jsonl"])
    assert 0 <= scores["accuracy"] <= 1
    with pytest.raises(UserError, match="name-your-data"):
        evaluate_run(folder, "test", ONE_RANK, ["data.test=test.jsonl"])


@pytest.mark.parametrize("task", ["pair_classification", "causal_lm", "token_classification", "multi_label"])
def test_predict_takes_every_task_that_python_saved(model_folder: Path, tmp_path: Path, task: str) -> None:
    language = task == "causal_lm"
    options = {"auto": tf.AutoModelForCausalLM, "num_labels": None} if language else {}
    folder = attached(model_folder, sktune.SKPromptConfig(text=TEXT), task=task, **options).save(tmp_path)
    pairs = ["w3"] if task == "pair_classification" else None
    assert len(list(predict(folder, ["w1 w2 w30"], pairs, ONE_RANK))) == 1


def test_a_given_model_and_tokenizer_take_the_place_of_the_named_ones(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = attached(model_folder, sktune.SKPrefixConfig(text=TEXT))
    folder = tuned.save(tmp_path / "adapter")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["name_or_path"] = "gone/away"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="gone/away"):
        sktune.load(folder)
    model = tf.AutoModel.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = tf.AutoTokenizer.from_pretrained(model_folder)
    assert torch.equal(logits(sktune.load(folder, model=model, tokenizer=tokenizer)), logits(tuned))
    model.config._name_or_path = "some/other-model"
    assert torch.equal(logits(sktune.load(folder, model=model, tokenizer=tokenizer)), logits(tuned))
    assert "is put on some/other-model" in caplog.text
    whole = tf.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    assert torch.equal(logits(sktune.load(folder, model=whole, tokenizer=tokenizer)), logits(tuned))

    config = tf.AutoConfig.from_pretrained(model_folder)
    config.rms_norm_eps *= 10
    with pytest.raises(UserError, match="model's configuration"):
        sktune.load(folder, model=tf.AutoModel.from_config(config), tokenizer=tokenizer)
    tokenizer.add_tokens(["unheard"])
    with pytest.raises(UserError, match="tokenizer's vocabulary"):
        sktune.load(folder, model=model, tokenizer=tokenizer)


def test_a_language_models_adapter_wants_one(model_folder: Path, tmp_path: Path) -> None:
    tuned = attached(model_folder, sktune.LoraConfig(), tf.AutoModelForCausalLM, task="causal_lm", num_labels=None)
    with pytest.raises(UserError, match="causal_lm"):
        sktune.load(tuned.save(tmp_path), model=tf.AutoModel.from_pretrained(model_folder), tokenizer=tuned.tokenizer)


def test_a_folder_does_not_say_that_code_may_run(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    folder = attached(model_folder, sktune.LoraConfig()).save(tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["trust_remote_code"] = True
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trusted: list[bool] = []
    real = tf.AutoConfig.from_pretrained

    def noted(*args: Any, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        trusted.append(trust_remote_code)
        return real(*args, **kwargs)

    monkeypatch.setattr(tf.AutoConfig, "from_pretrained", noted)
    sktune.load(folder)
    assert trusted and not any(trusted)
    sktune.load(folder, trust_remote_code=True)
    assert trusted[-1]
    with pytest.raises(UserError, match=r"model\.trust_remote_code"):
        list(predict(folder, ["w1"], None, ONE_RANK))
    assert len(list(predict(folder, ["w1"], None, ONE_RANK, ["model.trust_remote_code=true"]))) == 1


def test_what_is_no_adapter_is_refused_in_a_sentence(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained adapter here"):
        sktune.load(tmp_path)
    folder = attached(model_folder, sktune.LoraConfig()).save(tmp_path / "adapter")
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        sktune.load(folder)
    nameless = tf.AutoModel.from_config(tf.AutoConfig.from_pretrained(model_folder))
    nameless.config._name_or_path = nameless.name_or_path = ""
    tuned = sktune.attach(
        nameless, tf.AutoTokenizer.from_pretrained(model_folder), sktune.LoraConfig(), task="regression"
    )
    folder = tuned.save(tmp_path / "nameless")
    assert json.loads((folder / "adapter.json").read_text())["model"] is None
    with pytest.raises(UserError, match=r"had no name.*model="):
        sktune.load(folder)
    expected = logits(tuned.eval())
    assert torch.equal(logits(sktune.load(folder, model=sktune.detach(tuned), tokenizer=tuned.tokenizer)), expected)
