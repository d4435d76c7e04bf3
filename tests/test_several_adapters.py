"""Several adapters on one model, in turn: each reads, trains and is saved as if it were alone there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TEXT, tiny_network, tiny_tokenizer

import sktune
from sktune.errors import UserError

LORA, IA3, PREFIX = sktune.LoraConfig(rank=2), sktune.IA3Config(), sktune.SKPrefixConfig(text=TEXT, rank=2)
PAIRS = {
    "lora, lora": (LORA, sktune.LoraConfig(rank=4, alpha=64)),
    "lora, lora elsewhere": (LORA, sktune.LoraConfig(rank=2, target_modules=("k_proj", "q_proj"))),
    "lora, lora above": (LORA, sktune.LoraConfig(rank=2, layers=1)),
    "ia3, ia3": (IA3, sktune.IA3Config()),
    "lora, prefix": (LORA, PREFIX),
    "prefix, lora": (PREFIX, LORA),
    "ia3, bottleneck": (IA3, sktune.BottleneckAdapterConfig()),
}
IDS, LABELS = torch.tensor([[5, 6, 7, 8, 9], [6, 5, 9, 9, 1]]), torch.tensor([0, 1])


def attached(model: Any, method: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    tuned = sktune.attach(model, tiny_tokenizer(), method, task="sequence_classification", num_labels=2)
    with torch.no_grad():
        for parameter in tuned.parameters_to_train():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned.eval()


def logits(tuned: Any) -> torch.Tensor:
    with torch.no_grad():
        return tuned(IDS).logits  # type: ignore[no-any-return]


def trained(tuned: Any) -> dict[str, torch.Tensor]:
    """After two steps."""
    optimizer = torch.optim.AdamW(tuned.parameters_to_train(), lr=0.05)
    tuned.train()
    for _ in range(2):
        tuned(IDS, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.eval()
    return {name: p.detach().clone() for name, p in tuned.trainable_parameters().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pair", PAIRS)
def test_each_is_as_if_it_were_alone(pair: str, tmp_path: Path) -> None:
    methods = PAIRS[pair]
    alone = [attached(tiny_network("llama"), method, seed) for seed, method in enumerate(methods)]
    model = tiny_network("llama")
    with torch.no_grad():
        plain = model(IDS)[0]
    together = [attached(model, method, seed) for seed, method in enumerate(methods)]
    for own, shared in zip(alone, together, strict=True):
        assert torch.equal(logits(own), logits(shared))
        assert own.trainable_parameters().keys() == shared.trainable_parameters().keys()
        assert own.parameter_counts()[0] == shared.parameter_counts()[0]
        assert own.state_dict().keys() == shared.state_dict().keys()
    # Both train in turn, and neither changes the other.
    for own, shared in zip(alone, together, strict=True):
        others = [logits(other) for other in together if other is not shared]
        assert same(trained(own), trained(shared))
        assert torch.equal(logits(own), logits(shared))
        assert all(
            torch.equal(before, logits(other))
            for before, other in zip(others, (o for o in together if o is not shared), strict=True)
        )
    # What is saved is what it would have been, and goes back to its place.
    for number, (own, shared) in enumerate(zip(alone, together, strict=True)):
        shared.save(tmp_path / str(number))
        sktune.load_adapter(attached(tiny_network("llama"), methods[number]), tmp_path / str(number))
        state, before = {name: t.clone() for name, t in shared.state_dict().items()}, logits(shared)
        with torch.no_grad():
            for parameter in shared.parameters_to_train():
                parameter.zero_()
        assert not torch.equal(logits(shared), before)
        assert not shared.load_state_dict(state, strict=False).missing_keys
        assert torch.equal(logits(shared), before)
        assert torch.equal(logits(own), before)
    with torch.no_grad():
        assert torch.equal(model(IDS)[0], plain)
    # The first leaves, the second stays; then the model is as it was.
    first, second = together
    before = logits(second)
    sktune.detach(first)
    assert torch.equal(logits(second), before)
    assert same(trained(alone[1]), trained(second))
    third = attached(model, methods[0], 0)
    assert torch.equal(logits(third), logits(attached(tiny_network("llama"), methods[0], 0)))
    sktune.detach(third)
    sktune.detach(second)
    with torch.no_grad():
        assert torch.equal(model(IDS)[0], plain)
    assert [name for name, _ in model.named_parameters()] == [n for n, _ in tiny_network("llama").named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_copies_of_adapters_of_one_model_are_independent() -> None:
    model = tiny_network("llama")
    first, second = attached(model, LORA, 0), attached(model, LORA, 1)
    copied, before = copy.deepcopy(second), logits(second)
    assert torch.equal(logits(copied), before)
    trained(copied)
    assert torch.equal(logits(second), before)
    assert not torch.equal(logits(copied), before)
    assert not torch.equal(logits(first), before)


def test_what_cannot_be_together_is_refused() -> None:
    model = tiny_network("llama")
    first = attached(model, LORA)
    before = logits(first)
    with pytest.raises(UserError, match="layers of another method of peft"):
        attached(model, IA3)
    with pytest.raises(UserError, match="no layer of this llama is called 'nothing'"):
        attached(model, sktune.LoraConfig(target_modules=("nothing",)))
    with pytest.raises(UserError, match="trains the model's own weights has it for itself"):
        attached(model, sktune.FullFineTuningConfig())
    assert torch.equal(logits(first), before)
    assert trained(first)
    other = tiny_network("llama")
    full = attached(other, sktune.FullFineTuningConfig())
    with pytest.raises(UserError, match="trains the model's own weights has it for itself"):
        attached(other, LORA)
    assert trained(full)
