"""Texts of the tuned model: with its cache, token for token what it says when every token reads the text again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CLOSING, DECODERS, PAD, TEXT, VOCABULARY_SIZE, batch, kernels, tiny_network, tiny_tokenizer
from training_fixtures import ONE_RANK, TASKS, Workshop

import sktune
from sktune.answering import predict
from sktune.errors import UserError
from sktune.methods.config import MethodConfig
from sktune.model.attached import AttachedModel

METHODS = [
    sktune.SKPrefixConfig(text=TEXT),
    sktune.SKPromptConfig(text=TEXT),
    sktune.PromptTuningConfig(),
    sktune.PrefixTuningConfig(),
    sktune.LoraConfig(),
    sktune.IA3Config(),
    sktune.BottleneckAdapterConfig(),
    sktune.LlamaAdapterConfig(),
    sktune.TopLayersConfig(layers=1),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
IN_FRONT = [METHODS[0], METHODS[1]]
NEW = 7
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}


def tuned_on(method: MethodConfig, family: str = "llama", kernel: str | None = None, **config: Any) -> AttachedModel:
    torch.manual_seed(0)
    network = tiny_network(family, kernel or kernels(family)[-1], language_model=True, **config)
    tuned = sktune.attach(network, tiny_tokenizer(), method, task="causal_lm")
    with torch.no_grad():
        for parameter in tuned.parameters_to_train():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned.eval()


@torch.no_grad()
def by_reading_again(tuned: AttachedModel, row: torch.Tensor, new: int = NEW) -> list[int]:
    """What the tuned model's own forward says next, a token at a time."""
    ids = row[None]
    for _ in range(new):
        ids = torch.cat((ids, tuned(ids).logits[:, -1:].argmax(-1)), dim=1)
    return ids[0, len(row) :].tolist()


def assert_reads_again(
    tuned: AttachedModel, lengths: tuple[int, ...] = (6, 3, 1), side: str = "right", **options
) -> None:
    ids, mask = batch(lengths, side)
    found = tuned.generate(ids, mask, **{**OPTIONS, **options})
    assert found.shape == (len(lengths), max(lengths) + NEW)
    for row, values, kept in zip(found, ids, mask.bool(), strict=True):
        own = values[kept]
        assert torch.equal(row[max(lengths) - len(own) : max(lengths)], own)
        assert row[max(lengths) :].tolist() == by_reading_again(tuned, own)


@each_method
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy_texts_are_those_of_reading_everything_again(method, side: str, use_cache: bool) -> None:
    assert_reads_again(tuned_on(method), side=side, use_cache=use_cache)


@pytest.mark.parametrize("method", IN_FRONT, ids=["sk_prefix", "sk_prompt"])
@pytest.mark.parametrize("family", DECODERS)
def test_positions_are_right_in_every_family(family: str, method) -> None:
    for kernel in kernels(family):
        assert_reads_again(tuned_on(method, family, kernel))


@each_method
def test_without_a_mask_nothing_is_padded(method) -> None:
    tuned = tuned_on(method)
    ids, _ = batch((5, 5))
    found = tuned.generate(ids, **OPTIONS)
    assert [row[5:].tolist() for row in found] == [by_reading_again(tuned, row) for row in ids]


@torch.no_grad()
def best_by_reading_again(tuned: AttachedModel, row: torch.Tensor, beams: int) -> list[int]:
    """Beam search written out: of every beam's continuations the most likely ones, all of one length."""
    beams_now = [(0.0, row)]
    for _ in range(NEW):
        candidates = []
        for score, ids in beams_now:
            likely = tuned(ids[None]).logits[0, -1].float().log_softmax(-1)
            values, tokens = likely.topk(beams)
            candidates += [(score + float(v), torch.cat((ids, t[None]))) for v, t in zip(values, tokens, strict=True)]
        beams_now = sorted(candidates, key=lambda pair: -pair[0])[:beams]
    return beams_now[0][1][len(row) :].tolist()


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
@pytest.mark.parametrize("method", IN_FRONT, ids=["sk_prefix", "sk_prompt"])
def test_beams(family: str, method) -> None:
    tuned = tuned_on(method, family)
    ids, mask = batch((5, 2))
    found = tuned.generate(ids, mask, num_beams=3, **OPTIONS)
    expected = [best_by_reading_again(tuned, row[kept], 3) for row, kept in zip(ids, mask.bool(), strict=True)]
    assert found[:, 5:].tolist() == expected


@each_method
def test_samples_are_the_same_with_and_without_the_cache(method) -> None:
    tuned = tuned_on(method)
    ids, mask = batch((4, 2))
    options = {**OPTIONS, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        found.append(tuned.generate(ids, mask, use_cache=use_cache, **options))
    assert torch.equal(*found)
    assert len({tuple(row.tolist()) for row in found[0]}) == 4


@each_method
def test_generating_leaves_nothing_behind(method) -> None:
    tuned = tuned_on(method)
    plain = tiny_network("llama", "sdpa", language_model=True)
    ids, mask = batch((5, 5))
    tuned.generate(ids, mask, **OPTIONS)
    if not method.trains_backbone:
        expected = plain.generate(ids, **OPTIONS)
        assert torch.equal(tuned.backbone.model.generate(ids, **OPTIONS), expected)
        with tuned.disable_adapter():
            assert torch.equal(tuned.generate(ids, **OPTIONS), expected)
    with pytest.raises(UserError, match="inputs_embeds"):
        tuned.generate(ids, inputs_embeds=ids, **OPTIONS)
    assert not tuned.backbone.model._forward_pre_hooks


def test_a_rows_bos_is_not_read_behind_a_text_that_brought_one() -> None:
    tuned = tuned_on(METHODS[0])
    twice = torch.tensor([tiny_tokenizer()("w1 w2 w3")["input_ids"]])
    once = tuned.encode("w1 w2 w3")["input_ids"]
    assert torch.equal(twice[:, 1:], once)
    assert torch.equal(tuned.generate(twice, **OPTIONS)[0, 4:], tuned.generate(once, **OPTIONS)[0, 3:])


def test_an_end_token_ends_a_row() -> None:
    tuned = tuned_on(METHODS[0])
    ids, mask = batch((5, 2))
    free = tuned.generate(ids, mask, **OPTIONS)[:, 5:]
    end = int(free[0, 2])
    stop = free[0].tolist().index(end) + 1
    found = tuned.generate(ids, mask, **{**OPTIONS, "eos_token_id": end})[:, 5:]
    assert found[0].tolist() == [*free[0, :stop].tolist(), *[PAD] * (found.shape[1] - stop)]


def test_what_cannot_be_generated_is_refused_in_a_sentence() -> None:
    tuned = tuned_on(METHODS[1])
    ids, mask = batch((5, 2))
    for options, words in (
        ({"cache_implementation": "static"}, "cache_implementation 'static'"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"position_ids": ids}, "position_ids"),
        ({"generation_config": tf.GenerationConfig(cache_implementation="static")}, "cache_implementation"),
    ):
        with pytest.raises(UserError, match=words):
            tuned.generate(ids, mask, **options)
    with pytest.raises(UserError, match="no tokens"):
        tuned.generate(ids, torch.zeros_like(mask), **OPTIONS)
    with pytest.raises(UserError, match="input_ids"):
        tuned.generate(**OPTIONS)
    learned = tuned_on(METHODS[0], "gpt2", n_positions=20)
    with pytest.raises(UserError, match=r"allowed: max_new_tokens up to 7"):
        learned.generate(ids, mask, **{**OPTIONS, "max_new_tokens": 8})
    assert learned.generate(ids, mask, **{**OPTIONS, "max_new_tokens": 7}).shape == (2, 12)
    network = tiny_network("llama", "sdpa")
    classifier = sktune.attach(network, tiny_tokenizer(), METHODS[0], task="sequence_classification", num_labels=2)
    with pytest.raises(UserError, match="only a language model"):
        classifier.generate(ids, mask, **OPTIONS)


@pytest.mark.parametrize("method", ["sk_prefix", "sk_prompt"])
def test_predict_writes_what_reading_everything_again_says(workshop: Workshop, method: str) -> None:
    changes = {"method": {"name": method, "text": TEXT, "rank": 4}, "training": {"max_steps": 2}}
    workshop.train("run", TASKS["generation"], changes)
    tuned = sktune.load(workshop.output("run"))
    for text in ("w1 w2", "w30"):
        (answer,) = predict(workshop.output("run"), [text], None, ONE_RANK)
        said = by_reading_again(tuned, tuned.encode(text)["input_ids"][0], 3)
        said = said[: said.index(CLOSING)] if CLOSING in said else said
        assert answer["generated"] == tuned.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert max(said, default=0) < VOCABULARY_SIZE
