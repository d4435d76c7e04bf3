"""The methods SK-Tuning is compared with: where they start, what trains, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    ENCODERS,
    TEXT,
    batch,
    perturb,
    real_rows,
    tiny_backbone,
    tiny_method,
    tiny_network,
    tiny_tokenizer,
)
from training_fixtures import WITH_TEMPLATE

from sktune.backbone import Backbone, load_backbone
from sktune.methods import METHODS
from sktune.methods.bottleneck_adapter.config import BottleneckAdapterConfig
from sktune.methods.full.config import FullFineTuningConfig
from sktune.methods.ia3.config import IA3Config
from sktune.methods.llama_adapter.config import LlamaAdapterConfig
from sktune.methods.lora.config import LoraConfig
from sktune.methods.method import build_method
from sktune.methods.p_tuning.config import PTuningConfig
from sktune.methods.prefix_tuning.config import PrefixTuningConfig
from sktune.methods.prompt_tuning.config import PromptTuningConfig
from sktune.methods.top_layers.config import TopLayersConfig
from sktune.model.tuned_model import TunedModel
from sktune.sections import ModelSection, QuantizationSection
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

LABELS = ("w1", "w2 w3")
FAMILIES = ("llama", "mistral", "gpt2", "bert", "bloom", "falcon", "gpt_neox", "phi", "opt", "roberta", "qwen2")
SECTIONS: dict[str, Any] = {
    "prompt_random": PromptTuningConfig(init="random", num_virtual_tokens=4),
    "prompt_vocabulary": PromptTuningConfig(num_virtual_tokens=4),
    "prompt_text": PromptTuningConfig(init="text", text=TEXT),
    "prompt_labels": PromptTuningConfig(init="labels"),
    "prefix_random": PrefixTuningConfig(num_virtual_tokens=4),
    "prefix_network": PrefixTuningConfig(num_virtual_tokens=4, reparametrize=True, hidden_size=8),
    "prefix_text": PrefixTuningConfig(init="text", text=TEXT),
    "p_mlp": PTuningConfig(num_virtual_tokens=4, hidden_size=8),
    "p_lstm": PTuningConfig(num_virtual_tokens=4, hidden_size=8, encoder="lstm"),
    "p_anchored": PTuningConfig(template="w1 w2 w3 w4", anchors=("w2",), hidden_size=8),
    "lora": LoraConfig(rank=2),
    "ia3": IA3Config(),
    "llama_adapter": LlamaAdapterConfig(num_virtual_tokens=3, layers=2),
    "pfeiffer": BottleneckAdapterConfig(rank=2),
    "houlsby": BottleneckAdapterConfig(rank=2, placement="houlsby"),
    "top_layers": TopLayersConfig(layers=1),
    "full": FullFineTuningConfig(),
}
SILENT_AT_FIRST = ("lora", "ia3", "llama_adapter", "pfeiffer", "houlsby", "top_layers", "full")
UNFROZEN = ("top_layers", "full")
SEPARATE_PROJECTIONS = ("llama", "mistral", "phi", "opt", "qwen2")


def tuned(name: str, backbone: Backbone) -> TunedModel:
    torch.manual_seed(0)
    method = build_method(SECTIONS[name], backbone, tiny_tokenizer(backbone.family in ENCODERS), LABELS)
    head = build_task(TokenClassificationConfig()).head(backbone, 4)
    assert head is not None
    perturb(head)  # at its start, zero, it passes no gradient on
    return TunedModel(backbone, method, head)


def train_once(model: TunedModel, side: str = "right") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits of the real tokens, gradients) of one batch."""
    ids, mask = batch(side=side)
    model.zero_grad()
    output = model(ids, mask, labels=torch.where(mask == 1, ids % 4, -100))
    assert output.loss is not None
    assert output.logits is not None
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.trainable_parameters().items()}
    assert all(gradient is not None for gradient in gradients.values())
    return real_rows(output.logits, mask).detach(), gradients  # type: ignore[return-value]


def test_every_registered_method_is_covered_here_or_has_tests_of_its_own() -> None:
    elsewhere = {"sk_prefix", "sk_prompt", "head_only", *WITH_TEMPLATE}
    assert {section.name for section in SECTIONS.values()} | elsewhere == set(METHODS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in ("llama_adapter", *UNFROZEN)])
def test_each_family_trains_what_the_method_adds_and_nothing_else(family: str, name: str) -> None:
    backbone = tiny_backbone(family)
    frozen = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    model = tuned(name, backbone)
    _, gradients = train_once(model)
    assert sum(bool(gradient.abs().max() > 0) for gradient in gradients.values()) > 2 or len(gradients) <= 3
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
    optimizer.step()
    now = {key.replace(".base_layer", ""): value for key, value in backbone.model.state_dict().items()}
    for key, value in frozen.items():
        torch.testing.assert_close(now[key], value, atol=0, rtol=0)
    inside = [key for key in gradients if key.startswith("backbone.")]
    assert all("lora_" in key or "ia3_" in key for key in inside)
    assert bool(inside) == (name in ("lora", "ia3"))


@pytest.mark.parametrize("name", SILENT_AT_FIRST)
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_additions_start_as_the_frozen_model(family: str, name: str) -> None:
    if name == "llama_adapter" and family not in SEPARATE_PROJECTIONS:
        pytest.skip("refused, see below")
    ids, mask = batch()
    with torch.no_grad():
        plain = Backbone(tiny_network(family))
        expected = plain(plain.embed(ids), mask)
        model = tuned(name, tiny_backbone(family)).eval()
        found = model.backbone.read(model.backbone.embed(ids), mask, model.method(model.backbone))
        torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=1e-5, rtol=0)
        perturb(model)
        moved = model.backbone.read(model.backbone.embed(ids), mask, model.method(model.backbone))
    assert (real_rows(moved, mask) - real_rows(expected, mask)).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "same_as"), [("prompt_text", "sk_prompt"), ("prefix_text", "sk_prefix")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_where_sk_tuning_starts_too(family: str, name: str, same_as: str) -> None:
    ids, mask = batch()
    backbone, other = tiny_backbone(family), tiny_backbone(family)
    model = tuned(name, backbone).eval()
    sk = tiny_method(same_as, other, adapter="identity")
    with torch.no_grad():
        found = backbone.read(backbone.embed(ids), mask, model.method(backbone))
        expected = other.read(other.embed(ids), mask, sk(other))
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SECTIONS)
def test_padding_side_and_checkpointing_change_nothing(name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = tuned(name, Backbone(tiny_network("llama"), gradient_checkpointing=checkpointing))
        perturb(model)
        results += [train_once(model.train(), side) for side in ("right", "left")]
    logits, gradients = results[0]
    for other_logits, other_gradients in results[1:]:
        torch.testing.assert_close(other_logits, logits, atol=2e-5, rtol=0)
        for key, expected in gradients.items():
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(other_gradients[key], expected, atol=2e-5 * scale, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny_network("llama", language_model=True).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit", None])
@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in UNFROZEN])
def test_over_any_backbone_everything_that_trains_is_fp32(
    folder: Path, name: str, bits: str | None, dtype: Any
) -> None:
    quantization = QuantizationSection.model_validate({bits: True} if bits else {})
    section = ModelSection(name_or_path=str(folder), dtype=dtype)
    model = tuned(name, load_backbone(section, quantization, gradient_checkpointing=True, visible_prefix=True))
    perturb(model)
    logits, gradients = train_once(model)
    assert logits.isfinite().all()
    assert all(p.dtype == torch.float32 for p in model.trainable_parameters().values())
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients.values())


def test_dropout_inside_the_backbone_is_on_in_training_only() -> None:
    section = LoraConfig(rank=2, dropout=0.5)
    backbone = tiny_backbone("llama")
    model = TunedModel(backbone, build_method(section, backbone, tiny_tokenizer()), None)
    perturb(model)
    ids, mask = batch()

    def read() -> torch.Tensor:
        with torch.no_grad():
            return backbone.read(backbone.embed(ids), mask, model.method(backbone))

    model.train()
    assert not torch.equal(read(), read())
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.Dropout) and m.p != 0.5)
    model.eval()
    assert torch.equal(read(), read())


def test_dropout_under_checkpointing_is_the_same_in_the_recomputation() -> None:
    results = []
    for checkpointing in (False, True):
        backbone = Backbone(tiny_network("llama"), gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        method = build_method(LoraConfig(rank=2, dropout=0.5), backbone, tiny_tokenizer())
        model = TunedModel(backbone, method, build_task(TokenClassificationConfig()).head(backbone, 4))
        perturb(model)
        torch.manual_seed(1)
        results.append(train_once(model.train())[1])
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, atol=1e-6, rtol=1e-4)


# -- one prompt for a whole evaluation --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sk_prefix", "sk_prompt"])
def test_a_prompt_is_made_once_for_an_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("llama")
    method = tiny_method(name, backbone)
    perturb(method)
    ids, mask = batch()
    made = []
    real = method.weave
    monkeypatch.setattr(method, "weave", lambda *args: made.append(1) or real(*args))

    def read() -> torch.Tensor:
        return backbone.read(backbone.embed(ids), mask, method(backbone))

    method.train()
    fresh = read().detach()
    read()
    assert len(made) == 2  # in training, at every pass
    method.eval()
    with torch.no_grad():
        torch.testing.assert_close(read(), fresh, atol=1e-6, rtol=0)
        torch.testing.assert_close(read(), fresh, atol=1e-6, rtol=0)
        assert len(made) == 3
        perturb(method)  # in place, as an optimizer changes them
        assert (read() - fresh).abs().max() > 1e-4
        assert len(made) == 4
    read()  # with gradient, whatever the mode
    assert len(made) == 5
    with torch.inference_mode():
        method.train().eval()
        torch.testing.assert_close(read(), read(), atol=0, rtol=0)
    assert len(made) == 6
    method.train()
    read().sum().backward()


# -- details ----------------------------------------------------------------------------------------------------


def test_p_tuning_keeps_anchors_and_opening_tokens() -> None:
    backbone = tiny_backbone("llama")
    method: Any = tuned("p_anchored", backbone).method
    with torch.no_grad():
        prompt, plain = method.weave(backbone).prompt[0], backbone.embed(method.template_ids)[0]
    assert method.tuned.tolist() == [False, True, False, True, True]  # <s> w1 w2 w3 w4
    same = (prompt == plain).all(1)
    assert same.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (PTuningConfig(template="w1 w2", anchors=("w9",)), "'w9' is not a word of method.template"),
        (PTuningConfig(template="w1 w2", anchors=("w1", "w2")), "nothing of method.template is left"),
        (TopLayersConfig(layers=9), "method.layers: 9 is more than the model's 3"),
        (LlamaAdapterConfig(layers=9), "method.layers: 9 is more than the model's 3"),
        (LoraConfig(target_modules=("nothing",)), "name some of its linear layers: down_proj"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(section: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        build_method(section, tiny_backbone("llama"), tiny_tokenizer())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SEPARATE_PROJECTIONS])
def test_llama_adapter_names_the_families_it_cannot_serve(family: str) -> None:
    ids, mask = batch()

    def build_and_read() -> None:
        tuned("llama_adapter", tiny_backbone(family))(ids, mask)

    with pytest.raises(ValueError, match=f"llama_adapter is not available for {family}"):
        build_and_read()


def test_prompt_tuning_repeats_and_cuts_its_start_to_the_length_asked_for() -> None:
    backbone, tokenizer = tiny_backbone("llama"), tiny_tokenizer()
    for length in (2, 9):
        section = PromptTuningConfig(init="text", text="w1 w2", num_virtual_tokens=length)
        method: Any = build_method(section, backbone, tokenizer)
        ids = tokenizer("w1 w2")["input_ids"]
        assert method.positions == length
        assert method.tokens.input_ids[0].tolist() == (ids * 9)[:length]


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in UNFROZEN])
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = tuned(name, tiny_backbone("llama")).train()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    ids, mask = batch((9, 5, 7))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        output = model(ids, mask, labels=torch.where(mask == 1, ids % 4, -100))
        assert output.loss is not None
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
