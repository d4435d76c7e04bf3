"""Before the first update SK-Tuning is the hard prompt: the frozen model reading the text, then the input.

The reference is always the plain transformers model, given token ids and a mask, without any of our code.
Two rules bend that sentence for SK-Prefix, because its text is read before there is any input:

- a sliding window (Mistral) slides over the input itself; the text stays visible however far back it is;
- an encoder's text does not see the input, while every token of the input sees the text.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import (
    CONFIGS,
    DECODERS,
    ENCODERS,
    WINDOW,
    batch,
    kernels,
    perturb,
    prompt_ids,
    real_rows,
    tiny_backbone,
    tiny_method,
    tiny_network,
    tiny_tuned,
)
from torch.nn import functional as F

from sktune.model.padding import RightAligned

METHODS = ("sk_prefix", "sk_prompt")
TOLERANCE = 1e-5
FAMILIES_AND_KERNELS = [(family, kernel) for family in CONFIGS for kernel in kernels(family)]


def special_rule(method: str, family: str, prompt: int, length: int) -> torch.Tensor | None:
    """What each token sees, [prompt + length, prompt + length] bool; None: as the plain model does."""
    total = prompt + length
    rows, columns = torch.arange(total)[:, None], torch.arange(total)[None]
    if method == "sk_prefix" and family in ENCODERS:
        return (rows >= prompt) | (columns < prompt)
    if method == "sk_prefix" and family == "mistral_window":
        window = (columns <= rows) & (columns > rows - WINDOW)
        return window | ((rows >= prompt) & (columns < prompt))
    return None


def reference_mask(mask: torch.Tensor, prompt: int, rule: torch.Tensor | None) -> torch.Tensor:
    """The plain model's mask for prompt + input: the usual [B, length], or the rule as [B, 1, ., .]."""
    whole = F.pad(mask, (prompt, 0), value=1)
    if rule is None:
        return whole
    return torch.where(rule[None] & whole[:, None].bool(), 0.0, torch.finfo(torch.float32).min)[:, None]


def read_hard_prompt(
    plain: tf.PreTrainedModel,
    prompt: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    rule: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states [B, L, d] of right-padded ids [B, L], read behind the prompt [1, P]."""
    count = prompt.shape[1]
    whole = torch.cat((prompt.expand(len(ids), -1), ids), dim=1)
    with torch.no_grad():
        return plain(input_ids=whole, attention_mask=reference_mask(mask, count, rule))[0][:, count:]


def read_tuned(method: Any, backbone: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The method's hidden states, rows padded on any side, given back in the caller's order."""
    aligned = RightAligned(mask)
    with torch.no_grad():
        embeds = backbone.embed(aligned.forth(ids))
        return aligned.restore(backbone.read(embeds, aligned.attention_mask, method(backbone)))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "kernel"), FAMILIES_AND_KERNELS)
def test_step_zero_is_the_hard_prompt(family: str, kernel: str, name: str, side: str) -> None:
    backbone = tiny_backbone(family, kernel)
    method = tiny_method(name, backbone)
    plain, prompt = tiny_network(family, kernel), prompt_ids(family)
    assert method.positions == prompt.shape[1]

    ids, mask = batch(side=side)
    found = real_rows(read_tuned(method, backbone, ids, mask), mask)

    straight, straight_mask = batch()
    rule = special_rule(name, family, prompt.shape[1], straight.shape[1])
    expected = real_rows(read_hard_prompt(plain, prompt, straight, straight_mask, rule), straight_mask)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)

    with torch.no_grad():
        alone = real_rows(plain(input_ids=straight, attention_mask=straight_mask)[0], straight_mask)
    assert (expected - alone).abs().max() > 0.5, "the text makes no difference: nothing was tested"
    if rule is not None:
        unruled = real_rows(read_hard_prompt(plain, prompt, straight, straight_mask), straight_mask)
        assert (expected - unruled).abs().max() > 0.05, "the rule makes no difference: nothing was tested"


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_without_padding(family: str, name: str, length: int) -> None:
    # Where there is no padding, or only one query, attention kernels leave their mask out.
    kernel = kernels(family)[-1]
    backbone = tiny_backbone(family, kernel)
    ids, mask = batch(lengths=(length, length))
    prompt = prompt_ids(family)
    rule = special_rule(name, family, prompt.shape[1], length)
    expected = read_hard_prompt(tiny_network(family, kernel), prompt, ids, mask, rule)
    found = read_tuned(tiny_method(name, backbone), backbone, ids, mask)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapter", ["bottleneck", "both halves", "linear", "identity"])
@pytest.mark.parametrize("name", METHODS)
def test_every_adapter_starts_from_the_hard_prompt(name: str, adapter: str, bias: bool, shared: bool) -> None:
    if shared and name == "sk_prompt":
        return
    kind = {"train_down": True} if adapter == "both halves" else {"adapter": adapter}
    fields: dict[str, Any] = {**kind, "bias": bias} | ({"shared": True} if shared else {})
    backbone = tiny_backbone("llama", "sdpa")
    ids, mask = batch()
    expected = read_hard_prompt(tiny_network("llama"), prompt_ids("llama"), ids, mask)
    found = read_tuned(tiny_method(name, backbone, **fields), backbone, ids, mask)
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_reading_again_and_a_trainable_text_start_from_the_hard_prompt(family: str, name: str) -> None:
    backbone = tiny_backbone(family, kernels(family)[-1])
    ids, mask = batch()
    once = read_tuned(tiny_method(name, backbone), backbone, ids, mask)
    for fields in ({"semantics": "every_step"}, {"semantics": "every_step", "trainable_text": True}):
        again = read_tuned(tiny_method(name, backbone, **fields), backbone, ids, mask)
        torch.testing.assert_close(again, once, atol=0, rtol=0)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_window_longer_than_everything_is_no_window(kernel: str) -> None:
    ids, mask = batch()
    readings = []
    for family in ("mistral", "mistral_window"):
        backbone = tiny_backbone(family, kernel, sliding_window=17)
        readings.append(real_rows(read_tuned(tiny_method("sk_prefix", backbone), backbone, ids, mask), mask))
    expected = read_hard_prompt(tiny_network("mistral"), prompt_ids("mistral"), ids, mask)
    for found in readings:
        torch.testing.assert_close(found, real_rows(expected, mask), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_layers_with_and_without_a_window_side_by_side(kernel: str) -> None:
    window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    backbone, plain = tiny_backbone("qwen2", kernel, **window), tiny_network("qwen2", kernel, **window)
    assert set(plain.config.layer_types) == {"full_attention", "sliding_attention"}
    ids, _ = batch(lengths=(9,))
    prompt = prompt_ids("qwen2")
    total = prompt.shape[1] + 9
    full = torch.ones(total, total).tril().bool()
    sliding = special_rule("sk_prefix", "mistral_window", prompt.shape[1], 9)
    assert sliding is not None
    masks = {
        kind: torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        for kind, visible in (("full_attention", full), ("sliding_attention", sliding))
    }
    with torch.no_grad():
        expected = plain(input_ids=torch.cat((prompt, ids), 1), attention_mask=masks)[0][:, prompt.shape[1] :]
    found = read_tuned(tiny_method("sk_prefix", backbone), backbone, ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pass_without_prefix_after_one_with_it_is_the_plain_model(family: str) -> None:
    kernel = kernels(family)[-1]
    backbone, plain = tiny_backbone(family, kernel), tiny_network(family, kernel)
    method = tiny_method("sk_prefix", backbone)
    ids, mask = batch()
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask)[0]
        tuned = backbone.read(backbone.embed(ids), mask, method(backbone))
        found = backbone(backbone.embed(ids), mask)
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=TOLERANCE, rtol=0)
    assert (real_rows(tuned, mask) - real_rows(found, mask)).abs().max() > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_segments_reach_the_encoder(name: str) -> None:
    backbone, plain = tiny_backbone("bert"), tiny_network("bert")
    method, prompt = tiny_method(name, backbone), prompt_ids("bert")
    ids, mask = batch(lengths=(6,))
    types = torch.tensor([[0, 0, 0, 1, 1, 1]])
    count = prompt.shape[1]
    rule = special_rule(name, "bert", count, 6)
    visible = torch.ones(count + 6, count + 6).bool() if rule is None else rule
    with torch.no_grad():
        expected = plain(
            input_ids=torch.cat((prompt, ids), 1),
            token_type_ids=F.pad(types, (count, 0)),
            attention_mask=torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None],
        )[0][:, count:]
        found = backbone.read(backbone.embed(ids), mask, method(backbone), token_type_ids=types)
        unsegmented = backbone.read(backbone.embed(ids), mask, method(backbone))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert (found - unsegmented).abs().max() > 0.01


# transformers' own eager and SDPA Falcon differ where ALiBi is on (only the eager one scales it).
KERNELS_THAT_AGREE = [
    *((family, kernels(family)) for family in CONFIGS if family != "falcon_alibi"),
    ("falcon_alibi", ("eager",)),
    ("falcon_alibi", ("sdpa",)),
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "routes"), KERNELS_THAT_AGREE)
def test_logits_and_gradients_are_the_same_by_every_route(family: str, routes: tuple[str, ...], name: str) -> None:
    """Padding side, gradient checkpointing and attention kernel change how it is computed, never what."""
    results = []
    for kernel in routes:
        for checkpointing in (False, True):
            tuned = tiny_tuned(name, tiny_backbone(family, kernel, checkpointing=checkpointing))
            for side in ("right", "left"):
                ids, mask = batch(side=side)
                tuned.zero_grad()
                output = tuned(ids, mask, labels=torch.where(mask == 1, ids % 4, -100))
                output.loss.backward()
                gradients = {n: p.grad.clone() for n, p in tuned.trainable_parameters().items()}
                results.append((real_rows(output.logits, mask), output.loss, gradients))
    logits, loss, gradients = results[0]
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    for other_logits, other_loss, other_gradients in results[1:]:
        torch.testing.assert_close(other_logits, logits, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(other_loss, loss, atol=TOLERANCE, rtol=0)
        for parameter, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(other_gradients[parameter], gradient, atol=2e-5 * max(scale, 1.0), rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_the_trainable_text_gets_the_gradient_of_the_hard_prompt(family: str, name: str) -> None:
    """With F the identity, a changed text is a changed prompt, and gradient crosses the frozen model."""
    kernel = kernels(family)[-1]
    backbone = tiny_backbone(family, kernel, checkpointing=True)
    method = tiny_method(name, backbone, adapter="identity", semantics="every_step", trainable_text=True)
    (change,) = method.parameters()
    perturb(method)
    ids, mask = batch()
    weight = torch.randn(int(mask.sum()), backbone.hidden_size, generator=torch.Generator().manual_seed(2))
    loss = (real_rows(backbone.read(backbone.embed(ids), mask, method(backbone)), mask) * weight).sum()
    loss.backward()

    plain, altered = tiny_network(family, kernel), change.detach().clone().requires_grad_()
    count = len(altered)
    rule = special_rule(name, family, count, ids.shape[1])
    embed = plain.get_input_embeddings()
    opening = (embed(prompt_ids(family)) + altered).expand(len(ids), -1, -1)
    hidden = plain(
        inputs_embeds=torch.cat((opening, embed(ids)), dim=1),
        attention_mask=reference_mask(mask, count, rule),
    )[0][:, count:]
    expected_loss = (real_rows(hidden, mask) * weight).sum()
    (expected,) = torch.autograd.grad(expected_loss, altered)
    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(change.grad, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("adapter", ["bottleneck", "linear"])
@pytest.mark.parametrize("family", ["llama", "mistral_window", "falcon", "bloom", "bert"])
def test_prefix_adapter_gradients_match_finite_differences(family: str, adapter: str) -> None:
    tuned = tiny_tuned("sk_prefix", tiny_backbone(family), adapter=adapter)
    ids, mask = batch()
    labels = torch.where(mask == 1, ids % 4, -100)
    tuned(ids, mask, labels=labels).loss.backward()
    for parameter in tuned.method.parameters():
        direction = parameter.grad / parameter.grad.norm()
        step = 2e-3
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                losses.append(tuned(ids, mask, labels=labels).loss.item())
                parameter.sub_(sign * step * direction)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(float(parameter.grad.norm()), rel=2e-2, abs=2e-3)


def test_decoders_and_encoders_are_told_apart() -> None:
    assert [name for name in CONFIGS if tiny_backbone(name).is_encoder] == list(ENCODERS)
    assert len(DECODERS) + len(ENCODERS) == len(CONFIGS)
