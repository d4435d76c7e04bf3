"""The trained module: what it trains, how it pools, and its loss against the loss computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import (
    CLOSING,
    DECODERS,
    DEPTH,
    FIRST_WORD,
    OPENING,
    PAD,
    TEXT,
    VOCABULARY_SIZE,
    WIDTH,
    batch,
    kernels,
    prompt_ids,
    real_rows,
    tiny_backbone,
    tiny_method,
    tiny_network,
    tiny_tokenizer,
    tiny_tuned,
)
from torch.nn import functional as F

from sktune.backbone import Backbone
from sktune.methods.head_only.config import HeadOnlyConfig
from sktune.methods.method import build_method
from sktune.methods.sk_prompt.config import SKPromptConfig
from sktune.model.tuned_model import TunedModel, TunedOutput
from sktune.tasks import TASKS as SECTIONS
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.heads import SequenceHead, TokenClassificationHead
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

METHODS = ("sk_prefix", "sk_prompt")


# -- what is trained --


def test_the_papers_count_for_roberta_base() -> None:
    # Linear(d, d) without bias + P x d trainable text + Linear(d, 2), d = 768, P = 12.
    config = tf.RobertaConfig(
        vocab_size=VOCABULARY_SIZE,
        num_hidden_layers=1,
        intermediate_size=64,
        pad_token_id=PAD,
        type_vocab_size=1,
    )
    backbone = Backbone(tf.AutoModel.from_config(config, attn_implementation="eager"), attn_implementation="eager")
    tokenizer = tiny_tokenizer(encoder=True)
    text = TEXT + " w1 w2 w3"
    assert backbone.hidden_size == 768
    assert len(tokenizer(text)["input_ids"]) == 12
    method = build_method(
        SKPromptConfig(text=text, adapter="linear", bias=False, trainable_text=True, semantics="every_step"),
        backbone,
        tokenizer,
    )
    tuned = TunedModel(backbone, method, SequenceHead(768, 2, "mean"))
    plain = sum(p.numel() for p in backbone.parameters())
    assert tuned.parameter_counts() == (600_578, plain + 600_578)
    assert sum(p.numel() for p in tuned.trainable_parameters().values()) == 600_578


def adapter_size(width: int, adapter: str, rank: int, bias: bool) -> int:
    if adapter == "identity":
        return 0
    if adapter == "linear":
        return width * width + (width if bias else 0)
    halves = width * rank + (width if bias else 0), width * rank + (rank if bias else 0)
    return sum(halves) if adapter == "both halves" else halves[0]


# llama and mistral group their keys and values: 2 heads of 16; falcon's cache holds one head, in the newer
# layout all four.
KEY_VALUE_WIDTHS = {
    "llama": 32,
    "mistral": 32,
    "gpt_neox": 64,
    "falcon": 16,
    "falcon_new": 64,
    "bloom": 64,
    "bert": 64,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapter", ["bottleneck", "both halves", "linear", "identity"])
@pytest.mark.parametrize("family", KEY_VALUE_WIDTHS)
def test_trainable_counts(family: str, adapter: str, bias: bool) -> None:
    backbone, head = tiny_backbone(family), 4 * WIDTH + 4
    kind = {"adapter": "bottleneck", "train_down": True} if adapter == "both halves" else {"adapter": adapter}
    fields: dict[str, Any] = {"rank": 5, "bias": bias, **kind}
    width = KEY_VALUE_WIDTHS[family]
    one = adapter_size(width, adapter, 5, bias)
    assert tiny_tuned("sk_prefix", backbone, **fields).parameter_counts()[0] == 2 * DEPTH * one + head
    assert tiny_tuned("sk_prefix", backbone, shared=True, **fields).parameter_counts()[0] == 2 * one + head
    prompt = adapter_size(WIDTH, adapter, 5, bias)
    assert tiny_tuned("sk_prompt", backbone, **fields).parameter_counts()[0] == prompt + head
    assert tiny_tuned("sk_prompt", backbone, cut_layer=2, **fields).parameter_counts()[0] == prompt + head
    for name, one_method in (("sk_prefix", 2 * DEPTH * one), ("sk_prompt", prompt)):
        text = tiny_tuned(name, backbone, semantics="every_step", trainable_text=True, **fields)
        assert text.parameter_counts()[0] == one_method + prompt_ids(family).shape[1] * WIDTH + head


def test_head_only_trains_the_head_and_reads_the_input_alone() -> None:
    backbone, plain = tiny_backbone("llama"), tiny_network("llama")
    method = build_method(HeadOnlyConfig(), backbone, tiny_tokenizer())
    head = build_task(TokenClassificationConfig()).head(backbone, 4)
    tuned = TunedModel(backbone, method, head)
    assert isinstance(head, TokenClassificationHead)
    assert tuned.parameter_counts()[0] == 4 * WIDTH + 4
    assert method.positions == 0
    ids, mask = batch(side="left")
    straight, straight_mask = batch()
    with torch.no_grad():
        expected = head.classifier(plain(input_ids=straight, attention_mask=straight_mask)[0])
        found = tuned(ids, mask).logits
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, straight_mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "falcon", "bloom", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_trained_is_fp32_over_a_16_bit_backbone(family: str, name: str, dtype: torch.dtype) -> None:
    tuned = tiny_tuned(name, tiny_backbone(family, dtype=dtype), semantics="every_step", trainable_text=True)
    ids, mask = batch()
    output = tuned(ids, mask, labels=torch.where(mask == 1, ids % 4, -100))
    output.loss.backward()
    assert output.loss.dtype == output.logits.dtype == torch.float32
    assert output.loss.isfinite()
    assert output.logits.isfinite().all()
    for parameter in tuned.trainable_parameters().values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    exact = tiny_tuned(name, tiny_backbone(family), semantics="every_step", trainable_text=True)
    expected = exact(ids, mask, labels=torch.where(mask == 1, ids % 4, -100)).loss
    assert output.loss.item() == pytest.approx(expected.item(), abs=0.05)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "bloom", "bert"])
def test_training_mode_reaches_the_adapter_and_the_head_but_never_the_backbone(family: str, name: str) -> None:
    dropouts: dict[str, Any] = {"hidden_dropout_prob": 0.5} if family == "bert" else {"attention_dropout": 0.5}
    backbone = tiny_backbone(family, **dropouts)
    tuned = tiny_tuned(name, backbone)
    ids, mask = batch()
    still = tuned(ids, mask).logits
    tuned.train()
    assert tuned.method.training
    assert not any(module.training for module in backbone.modules())
    torch.testing.assert_close(tuned(ids, mask).logits, still, atol=0, rtol=0)
    tuned(ids, mask, labels=ids % 4).loss.backward()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["adapter", "head"])
def test_dropout_only_in_training(name: str, where: str) -> None:
    task: dict[str, Any] = {"head_dropout": 0.5} if where == "head" else {}
    fields: dict[str, Any] = {"dropout": 0.5} if where == "adapter" else {}
    tuned = tiny_tuned(name, tiny_backbone("llama"), task_fields=task, **fields)
    undropped = tiny_tuned(name, tiny_backbone("llama"))
    ids, mask = batch()
    torch.testing.assert_close(tuned(ids, mask).logits, undropped(ids, mask).logits, atol=0, rtol=0)
    tuned.train()
    first, second = tuned(ids, mask).logits, tuned(ids, mask).logits
    assert (first - second).abs().max() > 1e-3


# -- heads --


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["auto", "last", "mean", "first"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_pooling_sees_the_inputs_own_real_tokens(family: str, name: str, pooling: str, side: str) -> None:
    backbone = tiny_backbone(family)
    tuned = tiny_tuned(name, backbone, "sequence_classification", task_fields={"pooling": pooling})
    ids, mask = batch(side=side)
    found = tuned(ids, mask).logits
    assert found.shape == (3, 4)
    how = pooling if pooling != "auto" else ("mean" if family == "bert" else "last")
    for row, (values, kept) in enumerate(zip(ids, mask.bool(), strict=True)):
        alone = values[kept][None]  # the row by itself, without any padding
        with torch.no_grad():
            hidden = backbone.read(backbone.embed(alone), torch.ones_like(alone), tuned.method(backbone))[0]
        vector = {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[how]
        torch.testing.assert_close(found[row], tuned.head.classifier(vector), atol=1e-5, rtol=0)


def cross_entropy_by_hand(logits: torch.Tensor, label: int) -> float:
    logits = logits.detach().double()
    return float(logits.exp().sum().log() - logits[label])


@pytest.mark.parametrize("side", ["right", "left"])
def test_token_loss_by_hand(side: str) -> None:
    tuned = tiny_tuned("sk_prefix", tiny_backbone("llama"))
    ids, mask = batch(side=side)
    labels = torch.where((mask == 1) & (ids % 3 != 0), ids % 4, -100)
    output = tuned(ids, mask, labels=labels)
    losses = [
        cross_entropy_by_hand(output.logits[row, column], int(labels[row, column]))
        for row, column in (labels != -100).nonzero().tolist()
    ]
    assert 0 < len(losses) < int(mask.sum())
    whole_sum = tuned(ids, mask, labels=labels, num_items_in_batch=1).loss
    assert whole_sum.item() == pytest.approx(sum(losses), rel=1e-6)
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("task", ["sequence_classification", "pair_classification", "regression"])
def test_sequence_loss_by_hand(task: str) -> None:
    tuned = tiny_tuned("sk_prompt", tiny_backbone("bert"), task)
    ids, mask = batch(lengths=(5, 4, 6))
    if task == "regression":
        labels = torch.tensor([0.5, -1.0, 2.0])
        output = tuned(ids, mask, labels=labels)
        assert output.logits.shape == (3,)
        losses = [(logit - label).item() ** 2 for logit, label in zip(output.logits, labels, strict=True)]
    else:
        labels = torch.tensor([3, -100, 0])
        output = tuned(ids, mask, labels=labels)
        assert output.logits.shape == (3, 4)
        losses = [cross_entropy_by_hand(output.logits[row], int(labels[row])) for row in (0, 2)]
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_without_labels_there_is_no_loss() -> None:
    ids, mask = batch()
    for task in ("token_classification", "sequence_classification", "regression"):
        output = tiny_tuned("sk_prompt", tiny_backbone("llama"), task)(ids, mask)
        assert output.logits is not None
        assert output.loss is None


def test_a_missing_mask_means_no_padding() -> None:
    ids, mask = batch(lengths=(6, 6))
    tuned = tiny_tuned("sk_prefix", tiny_backbone("llama"))
    torch.testing.assert_close(tuned(ids).logits, tuned(ids, mask).logits, atol=0, rtol=0)


def labelled_batch(task: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if task == "regression":
        return torch.linspace(-1, 1, len(ids))
    if task == "sequence_classification":
        return torch.arange(len(ids)) % 4
    return torch.where(mask == 1, ids % 4 if task == "token_classification" else ids, -100)


def gradients(tuned: TunedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    tuned.zero_grad()
    loss.backward()
    parameters = tuned.trainable_parameters().values()
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


TASKS = ("token_classification", "sequence_classification", "regression", "causal_lm")


def tuned_for(task: str, name: str = "sk_prompt") -> Any:
    return tiny_tuned(name, tiny_backbone("llama", language_model=task == "causal_lm"), task)


@pytest.mark.parametrize("task", TASKS)
def test_two_half_batches_sum_to_the_whole(task: str) -> None:
    tuned = tuned_for(task)
    ids, mask = batch(lengths=(9, 5, 2, 7))
    labels = labelled_batch(task, ids, mask)
    whole = tuned(ids, mask, labels=labels)
    total = len(ids) if labels.ndim == 1 else int((labels != -100).sum())
    if task == "causal_lm":
        total -= len(ids)  # nothing comes before a row's first token to predict it from
    expected = gradients(tuned, whole.loss)

    # One half at a time, as gradient accumulation does: each pass is followed by its own backward.
    tuned.zero_grad()
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        half = tuned(ids[part], mask[part], labels=labels[part], num_items_in_batch=torch.tensor(total))
        half.loss.backward()
        halves.append(half)
    found = [parameter.grad for parameter in tuned.trainable_parameters().values()]
    assert (halves[0].loss + halves[1].loss).item() == pytest.approx(whole.loss.item(), abs=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 + 1e-5 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("filler_row", ["copy", "padding"])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_filler_rows_change_nothing(task: str, name: str, pooling: str, filler_row: str) -> None:
    language = task == "causal_lm"
    fields = {"pooling": pooling} if "pooling" in SECTIONS.config(task).model_fields else {}
    tuned = tiny_tuned(name, tiny_backbone("llama", language_model=language), task, task_fields=fields)
    ids, mask = batch(lengths=(9, 5))
    labels = labelled_batch(task, ids, mask)
    expected_output = tuned(ids, mask, labels=labels)
    expected = gradients(tuned, expected_output.loss)

    kept = 1 if filler_row == "copy" else 0
    filled_ids, filled_mask = torch.cat((ids, ids[:1])), torch.cat((mask, mask[:1] * kept))
    filler = torch.full_like(labels[:1], torch.nan if task == "regression" else -100)
    output = tuned(filled_ids, filled_mask, labels=torch.cat((labels, filler)))
    assert output.loss.item() == pytest.approx(expected_output.loss.item(), abs=1e-6)
    for one, other in zip(gradients(tuned, output.loss), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 + 1e-5 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_fillers_alone_has_loss_zero_and_finite_gradients(task: str) -> None:
    # A rank whose share of the data has run out still takes part in every pass.
    tuned = tuned_for(task)
    ids, mask = batch(lengths=(4, 4))
    labels = (
        torch.full((2,), torch.nan) if task == "regression" else torch.full_like(labelled_batch(task, ids, mask), -100)
    )
    output = tuned(ids, mask, labels=labels)
    assert output.loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(tuned, output.loss))


# -- the language model as its own head --


def prompts_and_targets(side: str = "right") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of input + target on either side of their padding; labels on the targets only."""
    lengths, targets = (9, 6, 8), (3, 1, 4)
    ids, mask = batch(lengths=lengths, side=side)
    labels = torch.full_like(ids, -100)
    for row, (length, target) in enumerate(zip(lengths, targets, strict=True)):
        end = length if side == "right" else ids.shape[1]
        labels[row, end - target : end] = ids[row, end - target : end]
    return ids, mask, labels


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", [family for family in DECODERS if family != "mistral_window"])
def test_language_loss_is_that_of_transformers(family: str, name: str, side: str) -> None:
    kernel = kernels(family)[-1]
    backbone = tiny_backbone(family, kernel, language_model=True)
    tuned = TunedModel(backbone, tiny_method(name, backbone), build_task(CausalLMConfig()).head(backbone, 0))
    ids, mask, labels = prompts_and_targets(side)
    with torch.no_grad():
        output = tuned(ids, mask, labels=labels)

    plain, prompt = tiny_network(family, kernel, language_model=True), prompt_ids(family)
    count = prompt.shape[1]
    straight, straight_mask, straight_labels = prompts_and_targets()

    def reference(rows: slice) -> float:
        arguments = {
            "input_ids": torch.cat((prompt.expand(len(straight[rows]), -1), straight[rows]), 1),
            "attention_mask": F.pad(straight_mask[rows], (count, 0), value=1),
            "labels": F.pad(straight_labels[rows], (count, 0), value=-100),
        }
        with torch.no_grad():
            return float(plain(**arguments).loss)

    assert output.loss.item() == pytest.approx(reference(slice(0, 3)), abs=1e-5)
    assert output.row_count.tolist() == [3, 1, 4]
    for row, tokens in enumerate((3, 1, 4)):
        assert float(output.row_loss[row]) == pytest.approx(tokens * reference(slice(row, row + 1)), abs=1e-4)
    assert output.row_loss.sum().item() == pytest.approx(8 * output.loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_only_positions_before_a_target_go_through_the_language_model_head(name: str) -> None:
    backbone = tiny_backbone("llama", language_model=True)
    tuned = tiny_tuned(name, backbone, "causal_lm")
    assert not list(tuned.head.parameters())
    ids, mask, labels = prompts_and_targets()
    with torch.no_grad():
        everywhere = tuned(ids, mask).logits
        found = tuned(ids, mask, labels=labels)
    assert everywhere.shape == (*ids.shape, VOCABULARY_SIZE)
    before = labels[:, 1:] != -100
    assert found.logits.shape == (len(ids), int(before.sum(1).max()), VOCABULARY_SIZE)
    for row in range(len(ids)):
        expected = everywhere[row, :-1][before[row]]
        torch.testing.assert_close(found.logits[row, : len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_language_logits_come_back_in_the_callers_order(name: str) -> None:
    tuned = tiny_tuned(name, tiny_backbone("llama", language_model=True), "causal_lm")
    readings = []
    for side in ("right", "left"):
        ids, mask = batch(side=side)
        with torch.no_grad():
            readings.append(real_rows(tuned(ids, mask).logits, mask))
    torch.testing.assert_close(readings[1], readings[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_language_gradients_do_not_depend_on_the_padding_side_or_checkpointing(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        backbone = tiny_backbone("llama", "sdpa", checkpointing=checkpointing, language_model=True)
        tuned = tiny_tuned(name, backbone, "causal_lm")
        for side in ("right", "left"):
            ids, mask, labels = prompts_and_targets(side)
            found.append(gradients(tuned, tuned(ids, mask, labels=labels).loss))
    for other in found[1:]:
        for one, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(one, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


# -- the text --


def test_the_text_opens_a_sequence_and_does_not_end_it() -> None:
    words = list(range(FIRST_WORD, FIRST_WORD + 7))
    assert prompt_ids("llama").tolist() == [[OPENING, *words]]
    assert prompt_ids("bert").tolist() == [[OPENING, *words, CLOSING]]
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = tiny_tokenizer(encoder=True).backend_tokenizer.post_processor
    assert tokenizer(TEXT)["input_ids"][-1] == CLOSING  # a decoder's tokenizer that closes every sequence
    backbone = tiny_backbone("llama")
    method: Any = build_method(SKPromptConfig(text=TEXT), backbone, tokenizer)
    assert method.positions == 8
    with torch.no_grad():
        torch.testing.assert_close(method.weave(backbone).prompt, backbone.embed(prompt_ids("llama")), atol=0, rtol=0)


def test_output_is_a_transformers_output() -> None:
    ids, mask = batch()
    output = tiny_tuned("sk_prompt", tiny_backbone("llama"))(ids, mask, labels=ids % 4)
    assert isinstance(output, TunedOutput)
    assert isinstance(output, tf.utils.ModelOutput)
    assert set(output.keys()) == {"loss", "logits"}
