"""Two sources that must agree: a tokenizer and a model; and models that are part of a larger one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import TEXT, tiny_network, tiny_tokenizer
from training_fixtures import TASKS, Sections, Workshop

import sktune
from sktune.cli import main

SEQUENCE = TASKS["sequence"]


def folder_with(tmp_path: Path, tokenizer: tf.PreTrainedTokenizerBase) -> Sections:
    folder = tmp_path / "model"
    tiny_network("llama", language_model=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": {"name_or_path": str(folder)}}


def with_a_token_more() -> tf.PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    free = tiny_network("llama").get_input_embeddings().num_embeddings - len(tokenizer)
    tokenizer.add_tokens([f"more{i}" for i in range(free)] + ["outside"])
    return tokenizer


def data_with(tmp_path: Path, word: str) -> Sections:
    rows = [{"text": f"w{i} {word}", "label": ("people", "places")[i % 2]} for i in range(8)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = {"train": path.name, "validation": None, "test": None}
    return {"data": {"path": str(tmp_path), **splits}, "training": {"eval_steps": ...}}


def test_a_padding_token_without_an_embedding_changes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    free = tiny_network("llama").get_input_embeddings().num_embeddings - len(tokenizer)
    tokenizer.add_tokens([f"more{i}" for i in range(free)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    usual, outside = (
        workshop.train("usual", SEQUENCE),
        workshop.train("out", SEQUENCE, folder_with(tmp_path, tokenizer)),
    )
    assert outside["test/loss"] == usual["test/loss"]


def test_a_tokenizer_without_any_special_token_pads_with_some_token(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = folder_with(tmp_path, tf.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer))
    with caplog.at_level("INFO"):
        assert workshop.train("run", SEQUENCE, changes)["steps"] == 8
    assert "model.tokenizer: it has no padding token" in caplog.text


@pytest.mark.parametrize(
    ("method", "word", "where"),
    [
        ({"name": "sk_prefix", "text": TEXT}, "outside", "a text of the train split"),
        ({"name": "sk_prefix", "text": "find the outside"}, "w5", "the text that the method reads"),
    ],
)
def test_a_token_without_an_embedding_is_refused_by_name(
    workshop: Workshop, tmp_path: Path, method: dict[str, str], word: str, where: str
) -> None:
    changes = folder_with(tmp_path, with_a_token_more())
    with pytest.raises(ValueError, match=rf"^model\.tokenizer: .* makes the token 'outside' \(id \d+\) of {where}"):
        workshop.train("run", SEQUENCE, changes, {"method": method}, data_with(tmp_path, word))


def test_a_token_without_an_embedding_in_a_text_to_predict(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.train("run", SEQUENCE, folder_with(tmp_path, with_a_token_more()))
    assert main(["predict", str(workshop.output("run")), "--text", "w1 outside"]) == 2
    assert re.search(r"makes the token 'outside' \(id \d+\) of text 1, and", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ({"name": "sk_prefix", "text": "w1 " * 30}, "text"),
        ({"name": "prefix_tuning", "text": ..., "rank": ..., "num_virtual_tokens": 30}, "num_virtual_tokens"),
        ({"name": "prompt_tuning", "text": ..., "rank": ..., "num_virtual_tokens": 30}, "num_virtual_tokens"),
    ],
)
def test_a_prompt_that_is_as_long_as_the_model_reads(
    workshop: Workshop, tmp_path: Path, method: dict[str, Any], field: str
) -> None:
    shutil.copytree(workshop.base["model"]["name_or_path"], tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 30}))
    with pytest.raises(ValueError, match=rf"^method\.{field}: a prompt of \d+ tokens leaves no room"):
        workshop.train("run", SEQUENCE, {"model": {"name_or_path": str(tmp_path / "short")}, "method": method})


def test_drawn_tokens_are_those_of_the_model() -> None:
    network, tokenizer = tiny_network("llama"), tiny_tokenizer()
    tokenizer.add_tokens([f"more{i}" for i in range(100_000)])  # nearly all are outside
    method = sktune.PromptTuningConfig(init="vocabulary", num_virtual_tokens=50)
    tuned = sktune.attach(network, tokenizer, method, task="sequence_classification", num_labels=2)
    assert tuned(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_the_text_model_of_a_composite_checkpoint_is_tuned(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = dict(
        vocab_size=104, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    whole = tf.Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "whole")
    part = tf.Gemma3ForCausalLM(whole.config.text_config)
    part.model.load_state_dict(whole.model.language_model.state_dict())
    part.tie_weights()
    part.save_pretrained(tmp_path / "part")
    for name in ("whole", "part"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    for task in ("sequence", "words"):
        losses = [
            workshop.train(f"{task}_{name}", TASKS[task], {"model": {"name_or_path": str(tmp_path / name)}})[
                "test/loss"
            ]
            for name in ("whole", "part")
        ]
        assert losses[0] == losses[1]


def test_attach_says_where_the_text_model_of_a_composite_one_is() -> None:
    text = dict(vocab_size=104, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**vision, patch_size=14), text_config=tf.LlamaConfig(**text)
    )
    with pytest.raises(ValueError, match=r"llava is made of several models .* give its text model"):
        sktune.attach(tf.LlavaForConditionalGeneration(config), tiny_tokenizer(), sktune.SKPrefixConfig(text=TEXT))


@pytest.mark.parametrize("architecture", ["Qwen3", "Olmo2"])
def test_the_prompt_of_llama_adapter_passes_through_the_norm_of_keys(architecture: str) -> None:
    shape = dict(
        vocab_size=104, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-12,
    )  # fmt: skip

    def logits(factor: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = getattr(tf, f"{architecture}Model")(getattr(tf, f"{architecture}Config")(**shape))
        with torch.no_grad():
            for layer in model.layers:
                layer.self_attn.k_proj.weight.mul_(factor)  # the norm of keys follows: nothing may change
        torch.manual_seed(0)
        method = sktune.LlamaAdapterConfig(num_virtual_tokens=6)
        tuned = sktune.attach(model, tiny_tokenizer(), method, task="token_classification", num_labels=3).eval()
        with torch.no_grad():
            tuned.method.gates.fill_(0.5)
            tuned.head.classifier.weight.normal_(generator=torch.Generator().manual_seed(1))
            return tuned(torch.arange(4, 13)[None]).logits

    assert torch.allclose(logits(1.0), logits(10.0), atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "more", "named"),
    [("Gemma2", {}, "attn_logit_softcapping"), ("Cohere", {"use_qk_norm": True}, "k_norm of shape")],
)
def test_llama_adapter_refuses_attention_it_does_not_repeat(
    architecture: str, more: dict[str, bool], named: str
) -> None:
    config = getattr(tf, f"{architecture}Config")(
        vocab_size=104, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, **more,
    )  # fmt: skip
    model = getattr(tf, f"{architecture}Model")(config)
    method = sktune.LlamaAdapterConfig(num_virtual_tokens=6)
    with pytest.raises(ValueError, match=f"llama_adapter is not available .* {named}"):
        sktune.attach(model, tiny_tokenizer(), method, task="token_classification", num_labels=3)
