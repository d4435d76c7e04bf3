"""What `forward` of an attached model takes and gives, as models of transformers do; and its tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import CLOSING, OPENING, TEXT, batch, kernels, real_rows, tiny_network, tiny_tokenizer

import sktune
from sktune.errors import UserError
from sktune.methods.config import MethodConfig
from sktune.model.attached import AttachedModel

METHODS = [
    sktune.SKPrefixConfig(text=TEXT),
    sktune.SKPromptConfig(text=TEXT),
    sktune.LoraConfig(),
    sktune.BottleneckAdapterConfig(),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])


def tuned_on(
    method: MethodConfig, family: str = "llama", task: str = "sequence_classification", **options: Any
) -> AttachedModel:
    torch.manual_seed(0)
    network = tiny_network(family, kernels(family)[-1], language_model=task == "causal_lm")
    settings = {"num_labels": 2, **options}
    tuned = sktune.attach(network, tiny_tokenizer(family == "bert"), method, task=task, **settings)
    with torch.no_grad():
        for parameter in tuned.parameters_to_train():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned.eval()


@each_method
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("family", "task"), [("llama", "causal_lm"), ("bert", "token_classification")])
@torch.no_grad()
def test_embeddings_take_the_place_of_token_ids(family: str, task: str, side: str, method: MethodConfig) -> None:
    tuned = tuned_on(method, family, task)
    ids, mask = batch(side=side)
    embeds = tuned.get_input_embeddings()(ids)
    expected = tuned(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(tuned(inputs_embeds=embeds, attention_mask=mask).logits, expected)
    for given in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(UserError, match="exactly one of input_ids and inputs_embeds"):
            tuned(**given)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "bloom"])
def test_hidden_states_of_a_method_that_adds_nothing_are_those_of_the_plain_model(family: str) -> None:
    tuned = tuned_on(sktune.HeadOnlyConfig(), family)
    plain = tiny_network(family, kernels(family)[-1])
    ids, mask = batch()
    expected = plain(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = tuned(ids, mask, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected)
    for one, other in zip(found.hidden_states, expected, strict=True):
        torch.testing.assert_close(real_rows(one, mask), real_rows(other, mask), atol=1e-5, rtol=0)
    assert tuned(ids, mask).hidden_states is None


@each_method
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_hidden_states_are_what_the_head_reads(side: str, method: MethodConfig) -> None:
    tuned = tuned_on(method, task="token_classification")
    ids, mask = batch(side=side)
    output = tuned(ids, mask, output_hidden_states=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(*ids.shape, 64)] * 4
    read = tuned.head.answer(output.hidden_states[-1].float())
    torch.testing.assert_close(real_rows(read, mask), real_rows(output.logits, mask))
    torch.testing.assert_close(tuned.base_model(ids, mask).last_hidden_state, output.hidden_states[-1])


@torch.no_grad()
def test_a_tuple_and_positions_in_words() -> None:
    tuned = tuned_on(METHODS[0])
    ids, mask = batch()
    labels = torch.tensor([0, 1, 1])
    loss, logits = tuned(ids, mask, labels=labels, return_dict=False)
    output = tuned(ids, mask, labels=labels)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    with pytest.raises(UserError, match=r"position_ids.*leave them out"):
        tuned(ids, mask, position_ids=torch.arange(ids.shape[1])[None])


def test_several_labels_a_text_are_learned() -> None:
    tuned = tuned_on(METHODS[1], task="multi_label", num_labels=3)
    ids, mask = batch()
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    output = tuned(ids, mask, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


# -- tokenizer --


@pytest.mark.parametrize(
    ("method", "family", "brings"),
    [
        (METHODS[0], "llama", False),
        (METHODS[1], "llama", False),
        (sktune.PTuningConfig(template="w1 w2 w3"), "llama", False),
        (sktune.PrefixTuningConfig(init="text", text="w1 w2"), "llama", False),
        (sktune.PromptTuningConfig(), "llama", True),
        (sktune.LoraConfig(), "llama", True),
        (METHODS[0], "bert", True),
    ],
)
def test_a_text_in_front_brings_the_bos_and_the_input_does_not(method: MethodConfig, family: str, brings: bool) -> None:
    tuned = tuned_on(method, family)
    encoded = tuned.encode(["w1 w2 w3", "w4"])
    assert (encoded["input_ids"][:, 0] == OPENING).tolist() == [brings, brings]
    assert encoded["attention_mask"].sum(1).tolist() == [
        3 + brings + (family == "bert"),
        1 + brings + (family == "bert"),
    ]
    assert tuned.encode("w4")["input_ids"].shape[0] == 1
    with pytest.raises(UserError, match="2 texts and 1 second texts"):
        tuned.encode(["w1", "w2"], "w3")
    with tuned.disable_adapter():
        assert int(tuned.encode("w4")["input_ids"][0, 0]) == OPENING
    if family == "bert":
        assert encoded["input_ids"][0, -1] == CLOSING


@each_method
@pytest.mark.parametrize("task", ["sequence_classification", "token_classification", "causal_lm"])
def test_a_second_bos_is_read_as_padding(task: str, method: MethodConfig) -> None:
    tuned = tuned_on(method, task=task)
    (once, mask), (width, lengths) = batch((4, 2)), (5, (4, 2))
    twice, longer = torch.full((2, width), OPENING), torch.zeros(2, width, dtype=torch.long)
    twice[:, 1:] = once
    for row, length in enumerate(lengths):
        longer[row, : length + 1] = 1
    labels = torch.tensor([0, 1]) if task == "sequence_classification" else torch.where(mask == 1, once % 2, -100)
    more = labels if labels.ndim == 1 else torch.cat((torch.ones(2, 1, dtype=torch.long), labels), 1)
    with torch.no_grad():
        one, other = tuned(once, mask, labels=labels), tuned(twice, longer, labels=more)
        if method.opens_sequence:
            assert other.loss == pytest.approx(float(one.loss), abs=1e-6)
        else:
            assert abs(float(other.loss - one.loss)) > 1e-4
        # A row that is nothing else is read as it is.
        alone = tuned(torch.tensor([[OPENING]])).logits
        assert alone.isfinite().all()


def test_the_tokenizer_that_was_given_stays_as_it_is_and_may_be_given_again() -> None:
    given = tiny_tokenizer()
    first = sktune.attach(tiny_network("llama"), given, METHODS[0], task="regression")
    assert given("w1")["input_ids"] == [OPENING, *first.tokenizer("w1")["input_ids"]]
    again = sktune.attach(tiny_network("llama"), first.tokenizer, METHODS[0], task="regression")
    assert torch.equal(again.method.text.input_ids, first.method.text.input_ids)
    assert copy.deepcopy(first).tokenizer("w1")["input_ids"] == first.tokenizer("w1")["input_ids"]


def test_how_much_trains_is_printed_as_peft_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tuned_on(METHODS[2])
    tuned.print_trainable_parameters()
    trainable, total = tuned.parameter_counts()
    assert capsys.readouterr().out.startswith(
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: "
    )
