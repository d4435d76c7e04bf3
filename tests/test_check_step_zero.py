"""What is tried on the user's own model before training: a method at its start against the plain model."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import pytest
import torch
from tiny_models import DEPTH, ENCODERS, TEXT, kernels, tiny_network, tiny_tokenizer
from training_fixtures import ONE_RANK, Workshop, adapter, largest_difference
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel, LlamaRotaryEmbedding

import sktune
from sktune.backbone import attention
from sktune.errors import UserError
from sktune.methods.config import MethodConfig
from sktune.recipe import load_recipe_document
from sktune.training.run import train

PREFIX, PROMPT = sktune.SKPrefixConfig(text=TEXT), sktune.SKPromptConfig(text=TEXT)
WEAVING: list[MethodConfig] = [
    PREFIX,
    PROMPT,
    sktune.SKPromptConfig(text=TEXT, cut_layer=1),
    sktune.PrefixTuningConfig(),
    sktune.PrefixTuningConfig(init="text", text=TEXT, num_virtual_tokens=3),
    sktune.PromptTuningConfig(),
    sktune.PromptTuningConfig(init="random"),
    sktune.PTuningConfig(hidden_size=8),
    sktune.LlamaAdapterConfig(layers=2),
    sktune.LoraConfig(),
    sktune.IA3Config(),
    sktune.BottleneckAdapterConfig(),
]


def attach(method: MethodConfig, network: Any, **options: Any) -> Any:
    tokenizer = tiny_tokenizer(network.config.model_type in ENCODERS)
    return sktune.attach(network, tokenizer, method, task="sequence_classification", num_labels=2, **options)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("step zero: ")]


# -- what holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", WEAVING, ids=lambda method: method.name)
def test_what_holds_is_attached_and_the_difference_is_logged(
    method: MethodConfig, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sktune")
    attach(method, tiny_network("llama", "sdpa", dtype=dtype))
    (line,) = logged(caplog)
    assert line.startswith(f"step zero: {method.name} gives what the plain llama gives for ")


@pytest.mark.parametrize("family", ["mistral_window", "falcon_alibi", "bloom", "gpt2", "bert", "roberta"])
@pytest.mark.parametrize("method", [PREFIX, PROMPT], ids=lambda method: method.name)
def test_no_alarm_for_families_that_hold(family: str, method: MethodConfig) -> None:
    attach(method, tiny_network(family, kernels(family)[-1]))


def test_nothing_is_left_of_it() -> None:
    models, states = [], []
    for check in (True, False):
        torch.manual_seed(3)
        models.append(attach(PREFIX, tiny_network("llama", "sdpa"), check_step_zero=check))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    tried, untried = models
    assert [m.training for m in tried.modules()] == [m.training for m in untried.modules()]
    for one, other in zip(tried.modules(), untried.modules(), strict=True):
        assert one.__dict__.keys() == other.__dict__.keys()
        assert not one._forward_hooks
    assert tried.method._made is None and tried.method._read_once is None
    assert all(p.grad is None for p in tried.parameters())


def test_a_model_without_values_is_not_tried(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sktune")
    attach(PREFIX, tiny_network("llama", "sdpa").to("meta"))
    assert not logged(caplog)


# -- what does not --------------------------------------------------------------------------------------------


def refused(method: MethodConfig, network: Any, **options: Any) -> str:
    trained = [p.requires_grad for p in network.parameters()]
    with pytest.raises(UserError) as caught:
        attach(method, network, **options)
    assert [p.requires_grad for p in network.parameters()] == trained == [True] * len(trained)
    attach(method, network, check_step_zero=False)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [PREFIX, sktune.PrefixTuningConfig()], ids=lambda method: method.name)
def test_a_prefix_that_one_layer_drops_is_refused_with_figure_and_layer(
    method: MethodConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaAttention.forward

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layer_idx == 1:
            self.__dict__.pop(attention.PREFIX_ATTRIBUTE, None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", forgetful)
    message = refused(method, tiny_network("llama", "sdpa", dtype=dtype))
    assert f"method.name: {method.name} is not available for this llama" in message
    assert f"from block 2 of {DEPTH} on" in message
    assert "use sk_prompt, which was tried and holds" in message
    figure = float(message.split("differs from it by ")[1].split()[0])
    assert 0.04 < figure < math.inf


def test_positions_that_the_model_numbers_itself_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaRotaryEmbedding.forward

    def from_zero(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(self, x, position_ids - position_ids[:, :1])

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", from_zero)
    for dtype in (torch.float32, torch.bfloat16):
        message = refused(PREFIX, tiny_network("llama", "sdpa", dtype=dtype))
        assert "from block 1 of" in message
    attach(PROMPT, tiny_network("llama", "sdpa"))


def test_a_model_that_reads_embeddings_otherwise_than_tokens_is_refused_for_every_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = LlamaModel.forward

    @functools.wraps(forward)
    def flipped(self: Any, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.flip(-1)
        return forward(self, *args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", flipped)
    for method in (PROMPT, sktune.LoraConfig()):
        message = refused(method, tiny_network("llama", "sdpa"))
        assert "no method was found that holds" in message


def test_what_differs_in_long_inputs_alone_is_found_at_the_length_of_the_recipe(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _shift_beyond(monkeypatch, 30)
    train(load_recipe_document(workshop.write("short", {"data": {"max_length": 16}})), ONE_RANK)
    with pytest.raises(UserError, match=r"for an input of 40 tokens, while short inputs agree \(lower data.max_length"):
        train(load_recipe_document(workshop.write("long", {"data": {"max_length": 40}})), ONE_RANK)


def _shift_beyond(monkeypatch: pytest.MonkeyPatch, border: int) -> None:
    """Rotary frequencies that depend on the length, as dynamic ones do."""
    forward = LlamaRotaryEmbedding.forward

    def dynamic(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(self, x, position_ids * (2 if int(position_ids.max()) >= border else 1))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", dynamic)


def test_what_the_model_itself_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaModel.forward

    @functools.wraps(forward)
    def tokens_only(self: Any, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            raise TypeError("give input_ids")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", tokens_only)
    assert "cannot be read with what it adds (give input_ids)" in refused(PROMPT, tiny_network("llama", "sdpa"))


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_run_tries_it_and_trains_as_without(workshop: Workshop, side: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sktune")
    for name, check in (("tried", True), ("untried", False)):
        workshop.train(name, {"model": {"check_step_zero": check}, "data": {"padding_side": side}})
    assert len(logged(caplog)) == 1
    assert largest_difference(adapter(workshop.output("tried")), adapter(workshop.output("untried"))) == 0.0
