"""The DeepSpeed configuration of a run: the shipped files, a user's own, and what is refused with which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from tiny_models import tiny_backbone

from sktune.backbone import Backbone
from sktune.distributed.deepspeed_config import read_deepspeed_config, shipped_config_path, size_deepspeed_config
from sktune.errors import UserError
from sktune.recipe import DEEPSPEED_PRESETS
from sktune.recipe.deepspeed_file import ZERO_KEYS
from sktune.recipe.rules.training import deepspeed_is_a_preset_or_a_file
from sktune.sections import DistributedSection, TrainingSection

TRAINABLE = 2_077
TRAINING = TrainingSection(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.5)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone("llama")


def sized(
    config: dict[str, Any], backbone: Backbone, *, shipped: bool = False, training: TrainingSection = TRAINING
) -> dict[str, Any]:
    return size_deepspeed_config(
        config, shipped=shipped, training=training, backbone=backbone, trainable=TRAINABLE, ranks=2
    )


def own_file(folder: Path, content: Any) -> str:
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


LARGEST_LAYER = 64 * 128
"""Of the tiny LLaMA's feed-forward."""


# -- the shipped files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
def test_shipped_files_hold_only_what_deepspeed_knows(name: str) -> None:
    config = json.loads(shipped_config_path(name).read_text(encoding="utf-8"))
    fields = DeepSpeedZeroConfig.model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    assert set(config["zero_optimization"]) <= known
    DeepSpeedZeroConfig(**config["zero_optimization"])  # refuses values of the wrong kind
    assert config["zero_optimization"]["stage"] == (2 if name == "zero2" else 3)
    offloaded = {key for key in config["zero_optimization"] if key.startswith("offload")}
    assert offloaded == ({"offload_param", "offload_optimizer"} if name == "zero3_offload" else set())


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
def test_shipped_files_are_sized_and_accepted_by_deepspeed(name: str, backbone: Backbone) -> None:
    config = sized(read_deepspeed_config(name), backbone, shipped=True)
    assert "auto" not in json.dumps(config)
    parsed = DeepSpeedConfig(config)
    assert parsed.train_micro_batch_size_per_gpu == 4
    assert parsed.gradient_accumulation_steps == 2
    assert parsed.gradient_clipping == 0.5
    assert not parsed.bfloat16_config.enabled
    assert not parsed.float16_config.enabled
    zero = parsed.zero_config
    assert zero.reduce_bucket_size == TRAINABLE  # not 2 GB of fp32
    if zero.stage == 3:
        assert zero.max_live_parameters == 2 * LARGEST_LAYER
        assert zero.max_reuse_distance == 0
        assert zero.prefetch_bucket_size == LARGEST_LAYER
    else:
        assert zero.allgather_bucket_size >= TRAINABLE


def test_sizing_leaves_what_was_read_alone(backbone: Backbone) -> None:
    config = read_deepspeed_config("zero3")
    before = json.dumps(config)
    sized(config, backbone, shipped=True)
    assert json.dumps(config) == before


def test_no_clipping_is_zero_to_deepspeed(backbone: Backbone) -> None:
    training = TrainingSection(max_grad_norm=None)
    assert sized(read_deepspeed_config("zero2"), backbone, shipped=True, training=training)["gradient_clipping"] == 0.0


# -- a user's own file ------------------------------------------------------------------------------------------


def test_auto_is_filled_in_and_the_rest_is_the_users(tmp_path: Path, backbone: Backbone) -> None:
    own = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "wall_clock_breakdown": True,
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": 123,
            "stage3_param_persistence_threshold": "auto",
            "sub_group_size": 77,
        },
    }
    config = sized(read_deepspeed_config(own_file(tmp_path, own)), backbone)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["wall_clock_breakdown"] is True
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] == TRAINABLE
    assert zero["stage3_param_persistence_threshold"] == 640
    assert (zero["stage3_prefetch_bucket_size"], zero["sub_group_size"]) == (123, 77)
    assert "stage3_max_live_parameters" not in zero
    DeepSpeedConfig(config)


def test_the_recipes_own_numbers_may_stand_in_the_file(tmp_path: Path, backbone: Backbone) -> None:
    own = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2},
    }
    assert sized(read_deepspeed_config(own_file(tmp_path, own)), backbone)["gradient_accumulation_steps"] == 2


def test_a_batch_of_all_ranks_is_checked_with_their_number(tmp_path: Path, backbone: Backbone) -> None:
    own = {"train_batch_size": 16, "zero_optimization": {"stage": 2}}  # 4 x 2 x 2 ranks
    assert sized(read_deepspeed_config(own_file(tmp_path, own)), backbone)["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [("offload_param", "cpu"), ("stage3_prefetch_bucket_size", "5e7"), ("reduce_bucket_size", True)],
)
def test_values_of_a_wrong_type_are_named(tmp_path: Path, key: str, value: Any) -> None:
    own = {"zero_optimization": {"stage": 3, key: value}}
    with pytest.raises(ValueError, match=rf"own\.json: zero_optimization\.{key} is {value!r}"):
        read_deepspeed_config(own_file(tmp_path, own))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_micro_batch_size_per_gpu", 8),
        ("gradient_accumulation_steps", 1),
        ("gradient_clipping", 1.0),
        ("train_batch_size", 7),  # 4 x 2 x 2 ranks are 16
        ("train_batch_size", 32),
    ],
)
def test_another_batch_than_the_recipes_is_refused(tmp_path: Path, backbone: Backbone, key: str, value: Any) -> None:
    own = {key: value, "zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=rf'distributed\.deepspeed: {key} is {value} in the file.*write "auto"'):
        sized(read_deepspeed_config(own_file(tmp_path, own)), backbone)


def test_an_auto_that_is_not_known_is_named(tmp_path: Path, backbone: Backbone) -> None:
    own = {"zero_optimization": {"stage": 3, "sub_group_size": "auto"}}
    with pytest.raises(ValueError, match='sub_group_size: "auto" is not known here; write a number'):
        sized(read_deepspeed_config(own_file(tmp_path, own)), backbone)


@pytest.mark.parametrize("section", ["bf16", "fp16"])
@pytest.mark.parametrize("enabled", [True, "auto"])
def test_casting_sections_are_refused(tmp_path: Path, section: str, enabled: Any) -> None:
    path = own_file(tmp_path, {section: {"enabled": enabled}, "zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match=rf"own\.json: {section}\.enabled .* remove the section: model\.dtype"):
        read_deepspeed_config(path)
    switched_off = own_file(tmp_path, {section: {"enabled": False}, "zero_optimization": {"stage": 3}})
    assert read_deepspeed_config(switched_off)[section] == {"enabled": False}


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_optimizer_and_scheduler_belong_to_the_recipe(tmp_path: Path, section: str) -> None:
    path = own_file(tmp_path, {section: {"type": "AdamW"}, "zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match=rf"own\.json: remove `{section}`; the recipe's training section sets it"):
        read_deepspeed_config(path)


@pytest.mark.parametrize("config", [{}, {"zero_optimization": {"stage": 0}}])
def test_a_file_without_zero_is_refused_for_null_does_that(tmp_path: Path, backbone: Backbone, config: Any) -> None:
    # DeepSpeed's engine without ZeRO has no sharded optimizer whose state could be saved.
    with pytest.raises(ValueError, match=r"distributed\.deepspeed: .*stage"):
        sized(read_deepspeed_config(own_file(tmp_path, config)), backbone)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimization": {\n"stage": 3,}\n}', r"own\.json: line 2: "),
        ("[3]", r"own\.json: expected a JSON object at the top"),
        ("", r"own\.json: line 1: "),
        ('{"zero_optimization": 3}', r"own\.json: .*zero_optimization"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"distributed\.deepspeed: .*" + message):
        read_deepspeed_config(own_file(tmp_path, content))


def test_a_missing_file_is_named_with_the_presets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*none\.json'; allowed: zero3, zero3_offload, zero2, null"):
        read_deepspeed_config(str(tmp_path / "none.json"))


def test_a_folder_or_a_binary_file_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path, tmp_path / "binary.json"):
        with pytest.raises(ValueError, match=r"distributed\.deepspeed: "):
            read_deepspeed_config(str(path))


def test_the_settings_of_zero_are_those_of_the_installed_deepspeed() -> None:
    fields = DeepSpeedZeroConfig.model_fields
    assert {*fields, *(info.alias for info in fields.values() if info.alias)} == ZERO_KEYS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimisation": {}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, "did you mean zero_optimization.overlap_comm?"),
        ({"zero_optimization": {"stage": 7}}, "stage must be 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "stage must be 1, 2 or 3"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping is no finite number"),
    ],
)
def test_a_file_that_deepspeed_would_read_otherwise_is_refused_before_anything_starts(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, **change}))
    with pytest.raises(UserError, match=re.escape(words)):
        read_deepspeed_config(str(file))
    (problem,) = deepspeed_is_a_preset_or_a_file(DistributedSection(deepspeed=str(file)))
    assert words in problem.message
