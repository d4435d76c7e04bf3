"""Frozen quantized layers on the CPU: over a quantized backbone, SK-Tuning is exact too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    VOCABULARY_SIZE,
    batch,
    prompt_ids,
    real_rows,
    tiny_method,
    tiny_network,
    tiny_tuned,
)
from torch.nn import functional as F

from sktune.backbone import Backbone, load_backbone
from sktune.backbone.quantized import FrozenLinear
from sktune.sections import ModelSection, QuantizationSection

METHODS = ("sk_prefix", "sk_prompt")
FAMILIES = ("llama", "bloom", "bert")
BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False},
    "nf4_double": {"load_in_4bit": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved tiny models."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        tiny_network(family, language_model=family != "bert").save_pretrained(found[family])
    return found


def load(folder: Path, bits: str, dtype: Any = "float32", **options: Any) -> Backbone:
    return load_backbone(
        ModelSection(name_or_path=str(folder), dtype=dtype),
        QuantizationSection(**BITS[bits]),
        visible_prefix=True,
        **options,
    )


def packed(backbone: Backbone) -> int:
    """Bytes of the linear layers' packed weights."""
    return sum(m.weight.nbytes for m in backbone.modules() if isinstance(m, FrozenLinear))


def read_hard_prompt(backbone: Backbone, family: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The quantized transformers model itself, given token ids and a mask."""
    prompt = prompt_ids(family)
    count = prompt.shape[1]
    whole_mask = F.pad(mask, (count, 0), value=1)
    with torch.no_grad():
        whole = torch.cat((prompt.expand(len(ids), -1), ids), 1)
        return backbone.base(input_ids=whole, attention_mask=whole_mask)[0][:, count:]


@pytest.mark.parametrize(
    ("family", "name"),
    # An encoder's SK-Prefix follows a rule of its own, tested unquantized.
    [(family, name) for family in FAMILIES for name in METHODS if (family, name) != ("bert", "sk_prefix")],
)
@pytest.mark.parametrize("bits", BITS)
def test_step_zero_is_the_quantized_model_reading_the_hard_prompt(
    folders: dict[str, Path], family: str, bits: str, name: str
) -> None:
    backbone = load(folders[family], bits)
    ids, mask = batch()
    expected = read_hard_prompt(load(folders[family], bits), family, ids, mask)
    unquantized = read_hard_prompt(Backbone(tiny_network(family)), family, ids, mask)
    with torch.no_grad():
        found = backbone.read(backbone.embed(ids), mask, tiny_method(name, backbone)(backbone))
        alone = backbone(backbone.embed(ids), mask)
    found, expected, alone = (real_rows(states, mask) for states in (found, expected, alone))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected - alone).abs().max() > 0.5
    assert (expected - real_rows(unquantized, mask)).abs().max() > 1e-2, "nothing was quantized"


@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_are_packed_and_counted_as_what_they_stand_for(folders: dict[str, Path], bits: str) -> None:
    network = tiny_network("llama")
    linear = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    backbone = load(folders["llama"], bits)
    assert packed(backbone) == (linear if bits == "int8" else linear // 2)
    tuned = tiny_tuned("sk_prefix", backbone)
    trainable, everything = tuned.parameter_counts()
    assert everything - trainable == sum(p.numel() for p in network.parameters())
    assert trainable == sum(p.numel() for p in tuned.trainable_parameters().values())
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("skip", [(), ("down_proj",), ("down_proj", "q_proj")])
@pytest.mark.parametrize("load_in", ["load_in_4bit", "load_in_8bit"])
def test_skipped_modules_and_the_language_model_head_stay_as_they_are(
    folders: dict[str, Path], load_in: str, skip: tuple[str, ...]
) -> None:
    section = ModelSection(name_or_path=str(folders["llama"]), dtype="float32")
    quantization = QuantizationSection.model_validate({"skip_modules": skip, load_in: True})
    backbone = load_backbone(section, quantization, language_model=True)
    untouched = {name for name, module in backbone.model.named_modules() if type(module) is torch.nn.Linear}
    assert {name.rsplit(".")[-1] for name in untouched} == {"lm_head", *skip}
    plain = tiny_network("llama", language_model=True)
    for name in untouched:
        expected = plain.get_submodule(name).weight
        torch.testing.assert_close(backbone.model.get_submodule(name).weight, expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_after_an_evaluation_are_those_before_it(
    folders: dict[str, Path], dtype: str, bits: str, name: str
) -> None:
    """On CPUs with AVX512-BF16 the stock 4-bit layer repacks its weight in its first gradient-free pass."""
    tuned = tiny_tuned(name, load(folders["llama"], bits, dtype))
    ids, mask = batch()
    labels = torch.where(mask == 1, ids % 4, -100)
    found = []
    for _ in range(2):
        tuned.train()
        tuned.zero_grad()
        output = tuned(ids, mask, labels=labels)
        output.loss.backward()
        found.append((output.loss.detach(), [p.grad.clone() for p in tuned.trainable_parameters().values()]))
        tuned.eval()
        with torch.no_grad():
            tuned(ids, mask)
    (loss, gradients), (loss_after, gradients_after) = found
    torch.testing.assert_close(loss_after, loss, atol=0, rtol=0)
    for before, after in zip(gradients, gradients_after, strict=True):
        assert before.dtype == torch.float32
        assert before.abs().max() > 0
        torch.testing.assert_close(after, before, atol=0, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_dequantized_weights(folders: dict[str, Path], bits: str, name: str) -> None:
    """A plain fp32 model with the dequantized weights, read off through the quantized layers' own outputs."""
    quantized = load(folders["llama"], bits)
    plain = tiny_network("llama")
    modules = dict(quantized.base.named_modules())
    with torch.no_grad():
        for path, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear):
                # Rows of the identity through y = x W^T give W^T.
                module.weight.copy_(modules[path](torch.eye(module.in_features)).T)
    ids, mask = batch()
    labels = torch.where(mask == 1, ids % 4, -100)
    results = []
    for backbone in (quantized, Backbone(plain)):
        tuned = tiny_tuned(name, backbone)
        output = tuned(ids, mask, labels=labels)
        output.loss.backward()
        results.append((output.logits.detach(), [p.grad for p in tuned.trainable_parameters().values()]))
    torch.testing.assert_close(real_rows(results[0][0], mask), real_rows(results[1][0], mask), atol=1e-5, rtol=0)
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", METHODS)
def test_padding_side_and_checkpointing_change_nothing(folders: dict[str, Path], name: str, bits: str) -> None:
    results = []
    for checkpointing in (False, True):
        tuned = tiny_tuned(name, load(folders["llama"], bits, gradient_checkpointing=checkpointing))
        for side in ("right", "left"):
            tuned.zero_grad()
            ids, mask = batch(side=side)
            output = tuned(ids, mask, labels=torch.where(mask == 1, ids % 4, -100))
            output.loss.backward()
            results.append(
                (
                    real_rows(output.logits, mask).detach(),
                    [p.grad.clone() for p in tuned.trainable_parameters().values()],
                )
            )
    logits, gradients = results[0]
    for other_logits, other_gradients in results[1:]:
        torch.testing.assert_close(other_logits, logits, atol=1e-6, rtol=0)
        for found, expected in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_default_outlier_threshold_and_language_loss_train(folders: dict[str, Path], bits: str) -> None:
    section = ModelSection(name_or_path=str(folders["llama"]), dtype="bfloat16")
    quantization = QuantizationSection(load_in_4bit=bits == "nf4", load_in_8bit=bits == "int8")
    backbone = load_backbone(section, quantization, language_model=True, visible_prefix=True)
    tuned = tiny_tuned("sk_prefix", backbone, "causal_lm")
    ids, mask = batch()
    optimizer = torch.optim.Adam(tuned.trainable_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output = tuned(ids, mask, labels=torch.where(mask == 1, ids, -100))
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert output.logits.shape[-1] == VOCABULARY_SIZE
    assert losses[-1] < losses[0] - 0.05
