"""`sktune plan`: exact where modules can be built, equal to what a real pass holds, and its advice holds."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TEXT, tiny_network, tiny_tokenizer
from torch import nn
from training_fixtures import UNFROZEN, WITH_TEMPLATE

from sktune.backbone import load_backbone
from sktune.backbone.quantized import FrozenLinear
from sktune.cli import main
from sktune.cli.plan import parse_bytes
from sktune.distributed.optimizer import build_optimizer
from sktune.distributed.plain_engine import PlainEngine
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.methods import METHODS
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.planning import MOMENTS, Plan, activations, changes, choose_sharding, plan
from sktune.planning.activations import Numbers, count_activations, dry_run, observe
from sktune.planning.changes import advise, parse_axes
from sktune.planning.gathered import Gathered, gathered_bytes
from sktune.planning.skeleton import find_skeleton
from sktune.planning.trained_bytes import Engine
from sktune.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CONLL = ROOT / "recipes" / "llama7b_conll.yaml"
NF4 = {"load_in_4bit": True}
BITS: dict[int, dict[str, Any]] = {32: {}, 8: {"load_in_8bit": True}, 4: NF4}

ZERO_2, ZERO_3 = Engine(stage=2), Engine(stage=3)

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Saved LLaMAs by their blocks; of 8 fewer are run to plan it."""
    found = {}
    for depth in (2, 8):
        found[depth] = tmp_path_factory.mktemp("plan") / "model"
        tiny_network("llama", language_model=True, num_hidden_layers=depth).save_pretrained(found[depth])
        tiny_tokenizer().save_pretrained(found[depth])
    return found


@pytest.fixture(scope="module")
def make(folders: dict[int, Path]) -> MakeRecipe:
    """A recipe over the tiny model; sections are changed by keyword."""

    def recipe(depth: int = 2, **sections: dict[str, Any]) -> Recipe:
        base: dict[str, dict[str, Any]] = {
            "model": {"name_or_path": str(folders[depth]), "dtype": "float32"},
            "quantization": {},
            "method": {"name": "sk_prefix", "text": TEXT, "rank": 4},
            "task": {"name": "token_classification", "labels": list("abcde")},
            "data": {"path": "nowhere", "max_length": 24},
            "training": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2},
            "distributed": {},
            "output": {"dir": "nowhere"},
        }
        return Recipe.model_validate({name: {**fields, **sections.get(name, {})} for name, fields in base.items()})

    return recipe


# -- the models that are built in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-chat-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ],
)
def test_built_in_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    overrides = [f"model.name_or_path={name}", "task={name: causal_lm, label_words: {a: good, b: bad}}"]
    recipe = load_recipe(CONLL.with_name("llama7b_sst2_words.yaml"), overrides)
    trainable, every = find_skeleton(recipe).build().parameter_counts()
    assert every - trainable == parameters


def test_the_packed_bytes_of_a_7b_are_half_a_byte_for_each_number() -> None:
    planned = plan(load_recipe(CONLL), ranks=2, compare_checkpointing=False)
    # Its 32 blocks of linear layers, without embeddings and norms.
    numbers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert planned.packed == numbers // 2 // 2
    assert planned.rest == (32000 * 4096 + 65 * 4096) * 2 // 2
    assert planned.gathered_per_forward >= numbers // 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_found_without_a_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", _no_network)
    skeleton = find_skeleton(load_recipe(path))
    assert skeleton.build(2).backbone.hidden_size >= 128


def _no_network(*_: object) -> None:
    raise AssertionError("the network was asked")


# -- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_frozen_bytes_equal_those_of_the_loaded_model(make: MakeRecipe, bits: int) -> None:
    recipe = make(quantization=BITS[bits])
    planned = plan(recipe, ranks=1, shard_backbone=False, compare_checkpointing=False)
    backbone = load_backbone(recipe.model, recipe.quantization, visible_prefix=True)
    linears = [module for module in backbone.modules() if isinstance(module, FrozenLinear)]
    packed = sum(linear.weight.nbytes for linear in linears)
    everything = sum(t.nbytes for t in (*backbone.parameters(), *backbone.buffers()))
    assert planned.packed == packed
    assert isinstance(recipe.method, SKPrefixConfig)
    text = 8 * len(tiny_tokenizer()(TEXT)["input_ids"])
    projection = 4 * backbone.key_value_width * recipe.method.rank
    centre = 4 * backbone.hidden_size  # of the head
    assert planned.packed + planned.scales + planned.rest + planned.buffers == everything + text + projection + centre
    assert bool(planned.scales) == bool(linears)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_share_is_padded_to_the_same_size_on_each_rank(make: MakeRecipe, ranks: int) -> None:
    planned = plan(make(quantization=NF4), ranks=ranks, compare_checkpointing=False)
    model = find_skeleton(make(quantization=NF4)).build()
    sizes = [p.numel() for n, p in model.named_parameters() if n.endswith("proj.weight")]
    assert planned.packed == sum(-(-size // ranks) for size in sizes)


HEAD_ONLY = {"name": "head_only", "text": ..., "rank": ...}


@pytest.mark.parametrize(
    ("method", "checkpointing", "kept"),
    [
        ({"name": "sk_prefix"}, False, "off"),
        ({"name": "sk_prefix"}, True, "off"),
        ({"name": "sk_prefix", "layers": 3}, False, "off"),
        ({"name": "sk_prefix", "layers": 3}, False, "memory"),
        ({"name": "sk_prefix", "layers": "1/2"}, True, "memory"),
        ({"name": "sk_prompt"}, False, "off"),
        (HEAD_ONLY, True, "off"),
        (HEAD_ONLY, False, "memory"),
    ],
    ids=str,
)
def test_activations_equal_those_of_a_real_pass(
    make: MakeRecipe, method: dict[str, Any], checkpointing: bool, kept: str
) -> None:
    recipe = _of_method(make, method, {"gradient_checkpointing": checkpointing, "frozen_states": kept})
    skeleton = find_skeleton(recipe)
    planned = dry_run(skeleton.build(), recipe, skeleton.length, ZERO_2)
    model = skeleton.build()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                values = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.05
                module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    real = observe(model, recipe, skeleton.length, keep_gradients=False)
    assert _moments(planned) == _moments(real)
    assert planned["resting"] > 0 or method == HEAD_ONLY
    assert [name for name in planned if name.startswith("in_evaluation")] == [f"in_evaluation/{i}" for i in range(8)]


def _moments(numbers: Numbers) -> list[tuple[str, int]]:
    """In order, without the peaks, which kernels' temporaries are part of."""
    return [(name, size) for name, size in numbers.items() if not name.endswith("_peak")]


def _of_method(make: MakeRecipe, fields: dict[str, Any], training: dict[str, Any]) -> Recipe:
    recipe = make(8, training=training).model_dump()
    recipe["method"] = {k: v for k, v in {"text": TEXT, "rank": 4, **fields}.items() if v is not ...}
    return Recipe.model_validate(recipe)


def test_going_on_from_frozen_states_keeps_less(make: MakeRecipe) -> None:
    fields = {"name": "sk_prefix", "layers": 2}
    kept, read = (
        plan(_of_method(make, fields, {"frozen_states": mode}), compare_checkpointing=False)
        for mode in ("memory", "off")
    )
    assert kept.packed + kept.scales + kept.rest < (read.packed + read.scales + read.rest) / 2
    assert kept.training_peak < read.training_peak
    assert kept.reading_peak == read.evaluation_peak


def test_a_deep_model_on_frozen_states_is_planned_from_shallow_ones_exactly(
    make: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = find_skeleton(_of_method(make, {"name": "sk_prefix", "layers": 1}, {"frozen_states": "memory"}))
    quick = count_activations(skeleton, ZERO_3)
    monkeypatch.setattr(activations, "SHALLOW", 99)
    assert quick == count_activations(skeleton, ZERO_3)
    assert quick["blocks_in_backward"] == 1


def test_checkpointing_keeps_little_of_a_block(make: MakeRecipe) -> None:
    planned = plan(make())
    kept, all_of_it = planned.activations_with_checkpointing, planned.activations_without_checkpointing
    assert kept is not None and all_of_it == planned.activations
    again = plan(make(training={"gradient_checkpointing": True}))
    assert again.activations == kept < all_of_it / 2
    assert again.activations_without_checkpointing == all_of_it


@pytest.mark.parametrize(("quantization", "checkpointing"), [({}, False), (NF4, True)])
def test_a_deep_model_is_planned_from_shallow_ones_exactly(
    make: MakeRecipe, monkeypatch: pytest.MonkeyPatch, quantization: dict[str, Any], checkpointing: bool
) -> None:
    skeleton = find_skeleton(make(8, training={"gradient_checkpointing": checkpointing}, quantization=quantization))
    quick = count_activations(skeleton, ZERO_3)
    monkeypatch.setattr(activations, "SHALLOW", 99)
    assert quick == count_activations(skeleton, ZERO_3)
    assert quick["blocks_in_backward"] == 8


def test_the_language_model_is_planned_with_logits_of_every_position(make: MakeRecipe) -> None:
    planned = plan(make(task={"name": "causal_lm", "labels": None}, data={"target_column": "answer"}))
    assert planned.logits == 4 * 24 * 104 * 4
    assert planned.activations > planned.logits
    assert planned.head == 0


@pytest.mark.parametrize("stage", [None, "zero2"])
def test_what_trains_without_sharding(make: MakeRecipe, stage: str | None) -> None:
    planned = plan(make(distributed={"deepspeed": stage}), ranks=2, compare_checkpointing=False)
    model = find_skeleton(make()).build()
    whole = 4 * sum(p.numel() for p in model.trainable_parameters().values())
    assert planned.gathered_per_step == 0 and planned.reduced_per_step == whole
    if stage is None:
        assert (planned.adapter + planned.head, planned.moments, planned.gradients) == (whole, 2 * whole, whole)
        assert planned.trained_copies == 0
    else:
        assert whole <= planned.adapter + planned.head <= whole + 64
        assert whole / 2 <= planned.trained_copies <= whole / 2 + 32
        assert planned.moments == 2 * planned.trained_copies


class _Trains:
    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return self.parameters


def test_without_deepspeed_the_moments_of_a_step_are_exact(make: MakeRecipe) -> None:
    recipe = make(distributed={"deepspeed": None})
    planned = plan(recipe, compare_checkpointing=False)
    model = find_skeleton(recipe).build()
    trainable = sum(p.numel() for p in model.trainable_parameters().values())
    parameters = {name: nn.Parameter(torch.zeros(p.shape)) for name, p in model.trainable_parameters().items()}
    alone = Ranks(0, 0, 1, torch.device("cpu"), launched=False)
    optimizer = build_optimizer(parameters, recipe.training)
    engine = PlainEngine(_Trains(parameters), optimizer, None, alone)  # type: ignore[arg-type]
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    engine.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    assert planned.moments == moments
    assert planned.live["at_checkpoint"] >= planned.live["after_load"] + moments + 12 * trainable


# -- gathering ------------------------------------------------------------------------------------------------------


def _gathered(make: MakeRecipe, engine: Engine, ranks: int = 2, blocks: int = 8, **sections: Any) -> Gathered:
    checkpointing = sections.get("training", {}).get("gradient_checkpointing", False)
    return gathered_bytes(engine, find_skeleton(make(8, **sections)).build(), ranks, checkpointing, blocks)


def _padded(make: MakeRecipe, ranks: int) -> int:
    parameters = find_skeleton(make(8)).build().parameters()
    return sum(-(-p.numel() // ranks) * ranks * p.element_size() for p in parameters)


def _sizes(make: MakeRecipe, end: str) -> list[int]:
    return [p.nbytes for n, p in find_skeleton(make(8)).build().named_parameters() if n.endswith(end)]


def test_nothing_stays_gathered_without_thresholds(make: MakeRecipe) -> None:
    found = _gathered(make, ZERO_3)
    assert (found.at_rest, found.in_evaluation, found.in_backward) == (0, 0, 0)
    assert found.most == max(_sizes(make, "proj.weight"))  # the layer at hand
    assert found.forward == _padded(make, 2)
    assert _gathered(make, ZERO_2) == _gathered(make, ZERO_3, ranks=1) == Gathered()


def test_a_share_is_gathered_with_its_padding(make: MakeRecipe) -> None:
    assert _gathered(make, ZERO_3, ranks=3).forward == _padded(make, 3) > sum(_sizes(make, ""))


def test_a_window_reaches_the_elements_to_prefetch_and_no_further_than_may_be_live(make: MakeRecipe) -> None:
    query, key = _sizes(make, "q_proj.weight")[0], _sizes(make, "k_proj.weight")[0]
    one = _gathered(make, Engine(stage=3, prefetch=1, max_live=10**9))
    assert (one.in_evaluation, one.in_backward) == (query, 3 * query)
    assert one.most == one.forward_most == 3 * max(_sizes(make, "proj.weight"))
    two = Engine(stage=3, prefetch=query // 4 + 1, max_live=query // 4 + 1)
    assert _gathered(make, two).in_evaluation == query + key
    assert _gathered(make, two._replace(max_live=1)).in_evaluation == query
    assert _gathered(make, two, blocks=0).in_backward == 0


def test_large_windows_get_ahead_until_as_much_is_gathered_as_may_be_live(make: MakeRecipe) -> None:
    blocks = sum(p.nbytes for p in find_skeleton(make(8)).build().backbone.blocks.parameters())
    window = blocks // 8
    found = _gathered(make, Engine(stage=3, prefetch=window // 4, max_live=10**9))
    assert (found.in_evaluation, found.in_backward) == (blocks, blocks + 2 * window)
    assert found.forward_most == found.most >= found.in_backward


def test_what_is_used_again_soon_is_kept_until_backward(make: MakeRecipe) -> None:
    found = _gathered(make, Engine(stage=3, max_reuse=10**9))
    kept = found.forward_most - found.most
    assert kept > 0 and found.forward_most == sum(
        p.nbytes for p in find_skeleton(make(8)).build().backbone.blocks.parameters()
    )
    assert found.in_evaluation == found.forward_most * 5 // 8 > 0
    assert found.in_backward == 0


def test_the_thresholds_of_a_file_of_ones_own_count(make: MakeRecipe, tmp_path: Path) -> None:
    def written(**zero: int) -> Plan:
        file = tmp_path / "zero.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 10, **zero}}))
        return plan(make(8, distributed={"deepspeed": str(file)}), ranks=2, compare_checkpointing=False)

    key = "stage3_prefetch_bucket_size"
    shared = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    small, large = written(**shared, **{key: 1}), written(**shared, **{key: 10**6})
    query = _sizes(make, "q_proj.weight")[0]
    assert small.gathered == 3 * query
    assert large.gathered == 3 * sum(p.nbytes for p in find_skeleton(make(8)).build().backbone.blocks.parameters())
    assert large.live["in_backward"] - small.live["in_backward"] == large.gathered - small.gathered
    assert large.training_peak > small.training_peak
    assert small.buckets == large.buckets == 40


def test_small_parameters_stay_gathered(make: MakeRecipe) -> None:
    model = find_skeleton(make(8)).build()
    found = _gathered(make, Engine(stage=3, persistence=model.backbone.hidden_size))
    small = [p for p in model.parameters() if p.numel() <= model.backbone.hidden_size]
    assert found.at_rest == sum(-(-p.numel() // 2) * 2 * p.element_size() for p in small)
    assert found.at_rest == found.in_evaluation >= sum(_sizes(make, "norm.weight")) > 0
    assert found.forward == _padded(make, 2) - found.at_rest


# -- verdict, advice, choice ------------------------------------------------------------------------------------------


def test_the_advice_fits_when_it_is_planned_again(make: MakeRecipe) -> None:
    recipe = make(data={"max_length": 200}, training={"per_device_eval_batch_size": 1})
    memory = int(plan(recipe).peak)
    advice = advise(recipe, 1, memory)
    assert plan(recipe, memory_bytes=memory).fits is False
    assert advice.changes[0].overrides == ("training.gradient_checkpointing=true",) and len(advice.changes) == 1
    again = plan(advice.changes[0].recipe, ranks=advice.changes[0].ranks, memory_bytes=memory)
    assert again.fits and again.peak == advice.plan.peak


def test_the_advice_can_be_typed(make: MakeRecipe, tmp_path: Path) -> None:
    """Options of the old bits would do nothing with the new ones, and are left out."""
    recipe = make(
        quantization={"load_in_8bit": True, "llm_int8_threshold": 5.0, "skip_modules": ["q_proj"]},
        training={"gradient_checkpointing": True, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
    )
    advice = advise(recipe, 1, int(plan(recipe).peak / 0.9) - 2000)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(exclude_unset=True)), encoding="utf-8")
    typed = [part for override in advice.changes[0].overrides for part in shlex.split(override)]
    assert typed[0].startswith("quantization={")
    again = load_recipe(file, typed)
    assert (again.quantization.bits, again.quantization.skip_modules) == (4, ("q_proj",))
    assert plan(again).peak == advice.plan.peak


def test_only_changes_that_the_rules_allow_are_tried(make: MakeRecipe) -> None:
    recipe = load_section(make(), {"name": "full"})
    assert all(change.recipe.quantization.bits is None for change in changes.changes(recipe, 1))


def test_gpus_are_counted_by_node(make: MakeRecipe) -> None:
    more = [c for c in changes.changes(make(), 4, nodes=2) if c.ranks == 8]
    assert more[0].overrides[0] == "--gpus 4"


def test_evaluation_can_be_what_has_to_shrink(make: MakeRecipe) -> None:
    recipe = make(
        data={"max_length": 200},
        training={"gradient_checkpointing": True, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 64},
    )
    small = recipe.model_copy(update={"training": recipe.training.model_copy(update={"per_device_eval_batch_size": 4})})
    advice = advise(recipe, 1, int(plan(small).peak / 0.9) + 2)
    assert len(advice.changes) == 1
    assert advice.changes[0].overrides[0].startswith("training.per_device_eval_batch_size=")


def test_several_changes_are_combined_where_none_is_enough(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_RANKS", 2)
    recipe = make(data={"max_length": 100}, distributed={"deepspeed": "zero3"})
    singles = [
        plan(change.recipe, ranks=change.ranks, compare_checkpointing=False).peak
        for change in changes.changes(recipe, 1)
    ]
    advice = advise(recipe, 1, int(min(singles) / 0.9 * 0.97))
    assert len(advice.changes) > 1
    last = advice.changes[-1]
    assert plan(last.recipe, ranks=last.ranks, memory_bytes=advice.plan.memory).fits
    assert advice.plan.peak < min(singles)


def test_what_fits_nowhere_is_said(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_RANKS", 2)
    advice = advise(make(), 1, 1000)
    assert not advice.plan.fits and "none of the changes" in advice.text


def test_copies_are_chosen_where_they_fit(make: MakeRecipe) -> None:
    recipe = make(distributed={"shard_backbone": "auto"})
    copied = plan(recipe, ranks=2, shard_backbone=False)
    enough = int(copied.peak / 0.9) + 2
    sharded, reason = choose_sharding(recipe, 2, enough)
    assert not sharded and "MiB" in reason and "fits" in reason
    sharded, reason = choose_sharding(recipe, 2, enough - 20)
    assert sharded and "does not fit" in reason
    assert choose_sharding(recipe, 1, 1000)[0] is False
    assert plan(recipe, ranks=2, memory_bytes=enough).sharded is False
    assert plan(recipe, ranks=2, memory_bytes=enough - 20).sharded is True


def test_every_moment_is_planned(make: MakeRecipe) -> None:
    planned = plan(make(quantization=NF4), ranks=2)
    assert set(planned.live) == set(MOMENTS)
    assert max(planned.live.values()) <= planned.peak + 12 * planned.trainable
    assert planned.live["after_load"] < planned.live["after_step"] < planned.live["after_forward"]
    more = plan(make(quantization=NF4), ranks=4)
    assert more.live["after_step"] < planned.live["after_step"]
    assert {f.name for f in dataclasses.fields(Plan)} <= set(planned.as_json())


def test_offloading_moves_the_shares_to_the_host(make: MakeRecipe) -> None:
    here = plan(make(), ranks=2, compare_checkpointing=False)
    there = plan(make(distributed={"deepspeed": "zero3_offload"}), ranks=2, compare_checkpointing=False)
    assert there.host > here.rest and there.rest == 0
    assert there.peak < here.peak


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(make: MakeRecipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(make(quantization=NF4).model_dump(exclude_unset=True)), encoding="utf-8")
    return path


def test_the_command_prints_a_table(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_file), "--gpus", "2", "--gpu-memory", "0.8MiB"]) == 0
    printed = capsys.readouterr().out
    for expected in ("quantized weights", "activations", "loading", "does not fit", "cheapest change", "not included"):
        assert expected in printed


def test_the_readme_shows_what_the_command_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("## Will it fit?")[1].split("```")
    command = next(line for line in shown[1].splitlines() if line.startswith("sktune plan"))
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown[3].splitlines() if line] == printed[-2:]


def test_the_command_imports_no_compiler_and_leaves_the_real_one_to_others() -> None:
    """They take as long to import as the plan to make."""
    program = (
        "import sys; from sktune.cli import main; status = main(['plan', sys.argv[1]]);"
        "assert 'scipy.optimize' not in sys.modules and 'torch._dynamo' not in sys.modules;"
        "import torch._dynamo; assert torch.compiler.disable(len) is not len; sys.exit(status)"
    )
    command = [sys.executable, "-c", program, str(CONLL)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "quantized weights" in found.stdout


def test_json_holds_integers(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_file), "training.gradient_checkpointing=true", "--gpus", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    planned = plan(load_recipe(recipe_file, ["training.gradient_checkpointing=true"]), ranks=2)
    assert printed["live"] == planned.live and printed["training_peak"] == planned.training_peak
    assert all(type(value) is int for value in printed["live"].values())


def test_the_sweep_is_a_grid_of_plans(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(recipe_file), "--gpus", "3", "--gpu-memory", "24GiB", "--sweep", "bits,ranks"]
    assert main([*arguments, "--json"]) == 0
    grid = json.loads(capsys.readouterr().out)
    assert [(p["bits"], p["ranks"]) for p in grid] == [(b, r) for b in (32, 8, 4) for r in (1, 2, 3, 4, 8)]
    assert [p["rest"] + p["packed"] for p in grid if p["ranks"] == 2] == sorted(
        (p["rest"] + p["packed"] for p in grid if p["ranks"] == 2), reverse=True
    )
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("yes") == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-memory", "a lot"], "--gpu-memory: 'a lot'"),
        (["--gpu-memory", "24"], "--gpu-memory: '24'"),
        (["data.max_length=100000"], "data.max_length: 100000 tokens"),
        (["method={name: full}", "model.dtype=float32", "quantization={}", "--sweep", "bits"], "cannot be at bits 8"),
        (["--gpus", "0"], "--gpus: 0"),
        (["--nodes", "0"], "--nodes: 0"),
        (["--sweep", "bits,size"], "--sweep: 'size'"),
        (["--sweep", "bits,bits"], "--sweep: 'bits'"),
    ],
)
def test_mistakes_are_named(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["plan", str(recipe_file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_offline_is_named_with_the_cure(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sktune.planning.skeleton.read_config", _not_there)
    recipe = make(model={"name_or_path": "somebody/some-model"})
    with pytest.raises(ValueError, match=r"somebody/some-model.*config.json.*meta-llama/Llama-2-7b-hf"):
        plan(recipe)


def _not_there(*_: object) -> None:
    raise UserError("no connection")


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("80 GB", 80 * 10**9), ("1.5g", 1_500_000_000), ("4096000", 4_096_000)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_axes_of_a_sweep() -> None:
    assert parse_axes("ranks, checkpointing") == ("ranks", "checkpointing")


def test_moments_come_in_the_order_of_a_step(make: MakeRecipe) -> None:
    skeleton = find_skeleton(make(8))
    numbers = dry_run(skeleton.build(), skeleton.recipe, skeleton.length, ZERO_3)
    moments = [name for name, _ in _moments(numbers)]
    step = ["after_forward", *(f"in_backward/{i}" for i in range(7, -1, -1)), "after_backward"]
    assert moments[2 : 2 + len(step)] == step


@pytest.mark.parametrize(
    "method",
    [
        {"name": "llama_adapter"}, {"name": "prompt_tuning"}, {"name": "prompt_tuning", "init": "labels"},
        {"name": "prefix_tuning"}, {"name": "prefix_tuning", "init": "text", "text": "find names"},
        {"name": "p_tuning", "template": "find the names :", "anchors": ["names"]},
    ],
    ids=lambda method: "-".join(method[key] for key in ("name", "init") if key in method),
)  # fmt: skip
def test_methods_that_ask_a_tokenizer_are_planned_without_one(method: dict[str, Any]) -> None:
    planned = plan(load_recipe(CONLL, [f"method={json.dumps(method)}"]), ranks=2, compare_checkpointing=False)
    assert planned.trainable > 0


def test_a_folder_with_a_configuration_alone_is_enough(make: MakeRecipe, tmp_path: Path) -> None:
    recipe = make()
    (tmp_path / "config.json").write_text((Path(recipe.model.name_or_path) / "config.json").read_text())
    found = plan(recipe.model_copy(update={"model": recipe.model.model_copy(update={"name_or_path": str(tmp_path)})}))
    assert any("method.text is" in note for note in found.assumptions)


@pytest.mark.parametrize("name", ["llama_adapter", "top_layers"])
def test_methods_of_many_layers_are_planned_at_full_depth(make: MakeRecipe, name: str) -> None:
    recipe = load_section(make(8), {"name": name, "layers": 7})
    assert plan(recipe, compare_checkpointing=False).trainable > 0


def load_section(recipe: Recipe, method: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(exclude_unset=True), "method": method})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_a_plan(recipe_file: Path, method: str) -> None:
    section: dict[str, Any] = {"name": method}
    if method.startswith("sk_"):
        section["text"] = "w1 w2"
    if method == "llama_adapter":
        section["layers"] = 1
    overrides = [f"method={json.dumps(section)}"]
    if method in UNFROZEN:
        overrides += ["quantization={}", "model.dtype=float32"]
    if method in WITH_TEMPLATE:
        overrides += ["task={name: sequence_classification}"]
    found = plan(load_recipe(recipe_file, overrides), ranks=2)
    assert found.training_peak >= found.live["after_forward"] > found.live["after_load"] > 0


def test_a_plan_imports_nothing_that_trains_scores_or_tracks(recipe_file: Path) -> None:
    program = (
        "import sys; from sktune.cli import main; main(sys.argv[1:]); "
        "print(sorted({'bitsandbytes', 'peft', 'deepspeed', 'datasets', 'mlflow', 'sklearn', 'matplotlib', 'pandas'} "
        "& set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "plan", str(recipe_file), "--gpus", "2"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.splitlines()[-1] == "[]"
