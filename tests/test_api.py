"""SK-Tuning from Python: in a plain loop and in transformers.Trainer, on the shipped miniature model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import sktune
from sktune.embedded import resolve
from sktune.model.tuned_model import TunedModel

MODEL = resolve("embedded:llama")
TEXT = "is the sentence positive or negative ?"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def sentiment(tokenizer) -> list[dict]:
    lines = (resolve("embedded:sentiment") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines[:320]]
    labels = sorted({example["label"] for example in examples})
    rows = []
    for example in examples:
        encoded = tokenizer(example["text"], add_special_tokens=False, truncation=True, max_length=48)
        rows.append(
            {
                "input_ids": encoded["input_ids"],
                "attention_mask": encoded["attention_mask"],
                "labels": labels.index(example["label"]),
            }
        )
    return rows


def attached(tokenizer, method=None, **options) -> TunedModel:
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32)
    method = method or sktune.SKPrefixConfig(text=TEXT)
    return sktune.attach(model, tokenizer, method, **{"task": "sequence_classification", "num_labels": 2, **options})


@pytest.mark.parametrize("config", [sktune.SKPrefixConfig(text=TEXT), sktune.SKPromptConfig(text=TEXT)])
def test_a_plain_loop_learns_and_leaves_the_backbone_alone(tokenizer, sentiment, config) -> None:
    tuned = attached(tokenizer, config)
    before = {name: p.clone() for name, p in tuned.backbone.named_parameters()}
    collate = DataCollatorWithPadding(tokenizer)
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=3e-3)
    losses = []
    for start in list(range(0, 320, 16)) * 4:
        output = tuned(**collate(sentiment[start : start + 16]))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert all(torch.equal(before[name], p) for name, p in tuned.backbone.named_parameters())


def test_a_window_that_would_hide_the_prefix_is_refused(tokenizer) -> None:
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32)
    model.config.sliding_window, model.config._attn_implementation = 16, "flash_attention_2"
    task = {"task": "sequence_classification", "num_labels": 2}
    with pytest.raises(ValueError, match=r"hide the prefix of sk_prefix.*attn_implementation='sdpa'"):
        sktune.attach(model, tokenizer, sktune.SKPrefixConfig(text=TEXT), **task)
    # No such kernel is here, so nothing can be read with it.
    sktune.attach(model, tokenizer, sktune.SKPromptConfig(text=TEXT), check_step_zero=False, **task)


def test_the_trainer_of_transformers_trains_and_evaluates(tokenizer, sentiment, tmp_path: Path) -> None:
    tuned = attached(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        max_steps=30,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=tuned,
        args=arguments,
        train_dataset=sentiment[:256],
        eval_dataset=sentiment[256:],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.6  # chance is one half


def test_a_saved_adapter_gives_the_same_logits_again(tokenizer, sentiment, tmp_path: Path) -> None:
    tuned = attached(tokenizer)
    with torch.no_grad():
        for parameter in tuned.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = DataCollatorWithPadding(tokenizer)(sentiment[:8])
    tuned.eval()
    folder = sktune.save_adapter(tuned, tmp_path / "adapter")
    fresh = attached(tokenizer).eval()
    with torch.no_grad():
        expected, untrained = tuned(**batch).logits, fresh(**batch).logits
        assert not torch.allclose(untrained, expected, atol=1e-3)
        assert torch.equal(sktune.load_adapter(fresh, folder)(**batch).logits, expected)
    other = attached(tokenizer, sktune.SKPrefixConfig(text=TEXT, rank=7))
    with pytest.raises(ValueError, match="do not fit this recipe"):
        sktune.load_adapter(other, folder)


def test_a_language_model_needs_no_task_name(tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tuned = sktune.attach(model, tokenizer, sktune.SKPromptConfig(text="continue the news :"))
    ids = torch.tensor([tokenizer("the people of the town", add_special_tokens=False)["input_ids"]])
    output = tuned(ids, labels=ids)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in tuned.trainable_parameters().values())


def test_what_does_not_fit_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="name a task"):
        attached(tokenizer, task=None)
    with pytest.raises(ValueError, match="num_labels"):
        attached(tokenizer, num_labels=None)
    with pytest.raises(ValueError, match="causal_lm"):
        attached(tokenizer, task="causal_lm")
