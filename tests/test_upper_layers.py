"""`method.layers`: methods in the upper blocks alone; below, the frozen model as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import DEPTH, TEXT, batch, perturb, tiny_backbone, tiny_tokenizer
from training_fixtures import TASKS, Workshop, adapter

from sktune.backbone import Backbone
from sktune.methods import METHODS
from sktune.methods.method import Method, build_method
from sktune.methods.upper_layers import number_of
from sktune.recipe import RecipeError

FIELDS: dict[str, dict[str, Any]] = {
    "sk_prefix": {"text": TEXT},
    "prefix_tuning": {"init": "text", "text": TEXT},
    "lora": {},
    "ia3": {},
    "bottleneck_adapter": {},
    "llama_adapter": {},
}


def built(name: str, layers: Any) -> tuple[Backbone, Method]:
    torch.manual_seed(0)
    backbone = tiny_backbone("llama")
    config = METHODS.config(name)(layers=layers, **FIELDS[name])
    return backbone, build_method(config, backbone, tiny_tokenizer())


def after_each_block(backbone: Backbone, method: Method) -> list[torch.Tensor]:
    """Hidden states behind every block."""
    states: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [block.register_forward_hook(keep) for block in backbone.blocks]
    ids, mask = batch()
    woven = method(backbone)
    states.clear()  # the text's own pass
    backbone.read(backbone.embed(ids), mask, woven)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("layers", [1, 2, "2/3"])
def test_the_blocks_below_are_the_frozen_model_and_keep_no_graph(name: str, layers: Any) -> None:
    backbone, method = built(name, layers)
    before = after_each_block(backbone, method)
    perturb(backbone)  # what lora and ia3 train
    perturb(method)
    after = after_each_block(backbone, method)
    below = DEPTH - number_of(layers, DEPTH)
    for block in range(DEPTH):
        assert torch.equal(before[block], after[block]) == (block < below)
        assert after[block].requires_grad == (block >= below)


@pytest.mark.parametrize("name", FIELDS)
def test_the_start_is_that_of_all_layers(name: str) -> None:
    everywhere, above = (after_each_block(*built(name, layers)) for layers in (DEPTH, 1))
    assert torch.equal(everywhere[-1], above[-1])


@pytest.mark.parametrize("name", FIELDS)
def test_what_trains_is_the_share_of_the_layers(name: str) -> None:
    def count(layers: int) -> int:
        return sum(p.numel() for part in built(name, layers) for p in part.parameters() if p.requires_grad)

    assert count(1) * DEPTH == count(DEPTH)


def test_a_share_is_rounded_and_at_least_one_block() -> None:
    assert [number_of(share, 30) for share in (None, "1/2", "1/4", "1/100", 7)] == [30, 15, 8, 1, 7]
    with pytest.raises(ValueError, match=r"method\.layers: 31 is more than the model's 30; allowed: 1 to 30"):
        number_of(31, 30)


@pytest.mark.parametrize("layers", [0, -1, "half", "3/2", "0/2", 0.5, True])
def test_wrong_numbers_of_layers_are_refused(workshop: Workshop, layers: Any) -> None:
    with pytest.raises(RecipeError, match=r"method\.layers"):
        workshop.train("run", {"method": {"layers": layers}})


def test_layers_that_would_mean_nothing_are_refused(workshop: Workshop) -> None:
    method: dict[str, Any] = {"method": {"trainable_text": True, "semantics": "every_step", "layers": 1}}
    with pytest.raises(RecipeError, match="a text that is trained is trained through every block"):
        workshop.train("run", method)
    noise: dict[str, Any] = {"method": {"name": "prefix_tuning", "layers": 1, "text": ..., "rank": ...}}
    with pytest.raises(RecipeError, match=r"method\.layers.*\n.*would do nothing: without a text"):
        workshop.train("run", noise)


def test_a_run_of_the_upper_half(workshop: Workshop) -> None:
    workshop.train("all", TASKS["sequence"])
    workshop.train("half", TASKS["sequence"], {"method": {"layers": "1/3"}})
    sizes = [adapter(workshop.output(name))["method.adapter.up"].shape[0] for name in ("all", "half")]
    assert sizes == [2 * DEPTH, 2]
