"""Loading tensor by tensor: the numbers `from_pretrained` loads, never the model at once, or an error with the cure."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, HEADS, PAD, VOCABULARY_SIZE, WIDTH, tiny_network
from torch import nn

from sktune.backbone import load_backbone, streaming, weights
from sktune.backbone.placement import OneProcess
from sktune.backbone.quantized import FrozenLinear, FrozenLinear4bit
from sktune.backbone.skeleton import build_skeleton, read_config
from sktune.sections import ModelSection, QuantizationSection

BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    "fp4_double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


# Known and not yet mended; strict, so that mending one says which mark to take away.


class Recorder(OneProcess):
    """One process that writes down what it is handed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        self.agreed: list[str | None] = []

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        self.calls.append(("parameter", tuple(value.shape), value.dtype))
        return super().parameter(value)

    def buffer(self, value: torch.Tensor) -> torch.Tensor:
        self.calls.append(("buffer", tuple(value.shape), value.dtype))
        return super().buffer(value)

    def agree(self, problem: str | None) -> str | None:
        self.agreed.append(problem)
        return super().agree(problem)


class Listener(Recorder):
    """A rank that does not read; what the others send is zeros."""

    reads = False

    def __init__(self, problem: str | None = None) -> None:
        super().__init__()
        self.problem = problem

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        return super().parameter(value.zero_())

    def agree(self, problem: str | None) -> str | None:
        super().agree(problem)
        return self.problem


def load(
    folder: Path | str,
    bits: str | None = None,
    *,
    dtype: Any = "float32",
    language_model: bool = False,
    placement: OneProcess | None = None,
    **section: Any,
) -> tf.PreTrainedModel:
    """The streamed model."""
    model = ModelSection(name_or_path=str(folder), dtype=dtype, **section)
    quantization = QuantizationSection(**BITS[bits]) if bits else None
    network = build_skeleton(
        model, quantization, read_config(model), language_model=language_model, attn_implementation="eager"
    )
    streaming.stream_weights(network, model, placement or OneProcess())
    return network


def stock(folder: Path, *, dtype: str = "float32", language_model: bool = False, **options: Any) -> tf.PreTrainedModel:
    """What transformers makes of the same folder."""
    auto: Any = tf.AutoModelForCausalLM if language_model else tf.AutoModel
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager", **options)
    return model.eval()


def assert_same(found: tf.PreTrainedModel, expected: tf.PreTrainedModel) -> None:
    """Equal parameters and buffers, bit by bit, under the same names; a pooler is not loaded."""
    for kind in ("named_parameters", "named_buffers"):
        wanted = {
            name: tensor
            for name, tensor in getattr(expected, kind)(remove_duplicate=False)
            if not name.startswith("pooler.")
        }
        got = dict(getattr(found, kind)(remove_duplicate=False))
        assert set(got) == set(wanted)
        for name, tensor in got.items():
            assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape), name
            assert torch.equal(tensor, wanted[name]), name
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not any(module.training for module in found.modules())


def is_tied(network: tf.PreTrainedModel) -> bool:
    head = network.get_output_embeddings()
    return head is not None and head.weight is network.get_input_embeddings().weight


def save(network: tf.PreTrainedModel, folder: Path, *, sharded: bool = False) -> Path:
    network.save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    assert (folder / INDEX).is_file() == sharded
    assert (folder / SINGLE).is_file() != sharded
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Changes the tensors of a folder's single file."""
    tensors = load_file(folder / SINGLE)
    save_file(
        {name: tensor.contiguous() for name, tensor in change(tensors).items()}, folder / SINGLE, {"format": "pt"}
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """Every family's causal language model (encoders too), in one file and in shards."""
    found = {}
    for family in CONFIGS:
        network = tiny_network(family, language_model=True)
        for sharded in (False, True):
            folder = tmp_path_factory.mktemp(family)
            found[family, sharded] = save(network, folder, sharded=sharded)
    return found


# -- the numbers of from_pretrained --


@pytest.mark.parametrize("language_model", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_loads_as_transformers_loads_it(
    folders: dict[tuple[str, bool], Path], family: str, sharded: bool, language_model: bool
) -> None:
    folder = folders[family, sharded]
    found, expected = load(folder, language_model=language_model), stock(folder, language_model=language_model)
    assert_same(found, expected)
    assert is_tied(found) == is_tied(expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_cast_as_transformers_casts_them(
    folders: dict[tuple[str, bool], Path], family: str, dtype: str
) -> None:
    folder = folders[family, False]
    assert_same(load(folder, dtype=dtype), stock(folder, dtype=dtype))
    assert torch.get_default_dtype() == torch.float32


_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_OLD_SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY_SIZE, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS}
OTHERS: dict[str, dict[str, Any]] = {
    "albert": {**_SHAPE, "embedding_size": 32},  # layers that share their weights
    "codegen": {**_OLD_SHAPE, "rotary_dim": 8},
    "cohere": {**_SHAPE, "num_key_value_heads": 2},
    "deberta-v2": {**_SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"vocab_size": VOCABULARY_SIZE, "dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 96},
    "electra": {**_SHAPE, "embedding_size": 32},
    "gemma2": {**_SHAPE, "num_key_value_heads": 2, "head_dim": 16},
    "gpt_bigcode": _OLD_SHAPE,
    "gpt_neo": {
        "vocab_size": VOCABULARY_SIZE, "hidden_size": WIDTH, "num_layers": 2, "num_heads": HEADS,
        "attention_types": [[["global", "local"], 1]],
    },
    "gptj": {**_OLD_SHAPE, "rotary_dim": 8},
    "modernbert": {**_SHAPE, "cls_token_id": 0, "sep_token_id": 2},
    "mpnet": _SHAPE,
    "phi3": {**_SHAPE, "num_key_value_heads": 2},
    "qwen3": {**_SHAPE, "num_key_value_heads": 2, "head_dim": 16},
    "xglm": {
        "vocab_size": VOCABULARY_SIZE, "d_model": WIDTH, "num_layers": 2, "attention_heads": HEADS, "ffn_dim": 96,
    },
}  # fmt: skip


def other_network(family: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    network = tf.AutoModel.from_config(tf.AutoConfig.for_model(family, **OTHERS[family]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", OTHERS)
def test_families_no_other_test_knows(family: str, dtype: str, tmp_path: Path) -> None:
    folder = save(other_network(family), tmp_path)
    assert_same(load(folder, dtype=dtype), stock(folder, dtype=dtype))


def test_norms_that_a_family_keeps_in_float32(tmp_path: Path) -> None:
    config = tf.GptOssConfig(**_SHAPE, num_key_value_heads=2, head_dim=16, num_local_experts=2)
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    expected = stock(tmp_path, dtype="float16")
    assert expected.get_parameter("norm.weight").dtype == torch.float32
    assert_same(load(tmp_path, dtype="float16"), expected)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_of_any_float_dtype(tmp_path: Path, stored: torch.dtype) -> None:
    folder = save(tiny_network("llama"), tmp_path)
    rewrite(folder, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    assert_same(load(folder), stock(folder))
    assert_same(load(folder, dtype="bfloat16"), stock(folder, dtype="bfloat16"))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("bits", BITS)
def test_quantized_is_the_cast_weight_as_transformers_quantizes_it(
    folders: dict[tuple[str, bool], Path], bits: str, family: str, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1000)
    fields = BITS[bits]
    config = tf.BitsAndBytesConfig(**fields)
    expected = stock(folders[family, False], dtype="bfloat16", quantization_config=config)
    from_float32 = stock(folders[family, False], quantization_config=config)
    found = load(folders[family, sharded], bits, dtype="bfloat16")
    packed = differing = 0
    for name, module in found.named_modules():
        if isinstance(module, FrozenLinear):
            other: Any = expected.get_submodule(name)
            packed += 1
            assert torch.equal(module.weight.view(-1), other.weight.data.view(-1)), name
            if isinstance(module, FrozenLinear4bit):
                state = other.weight.quant_state
                assert torch.equal(module.absmax, state.absmax)
                if module.double_quant:
                    assert torch.equal(module.nested_absmax, state.state2.absmax)
                    assert torch.equal(module.offset, state.offset)
            else:
                assert torch.equal(module.scale, other.weight.SCB)
            assert (module.bias is None) == (other.bias is None)
            if module.bias is not None:
                assert torch.equal(module.bias, other.bias)
            differing += not torch.equal(module.weight.view(-1), from_float32.get_submodule(name).weight.data.view(-1))
    assert packed > 0
    assert differing > 0, "whether the weight was cast first makes a difference"
    for name, parameter in found.named_parameters():
        if not isinstance(found.get_submodule(name.rpartition(".")[0]), FrozenLinear):
            assert torch.equal(parameter, expected.get_parameter(name)), name


@pytest.mark.parametrize(("bits", "dtype"), [(None, "bfloat16"), ("nf4", "bfloat16"), ("int8", "float16")])
def test_the_default_dtype_is_left_alone(
    folders: dict[tuple[str, bool], Path], bits: str | None, dtype: str, tmp_path: Path
) -> None:
    load(folders["llama", False], bits, dtype=dtype)
    assert torch.get_default_dtype() == torch.float32
    shutil.copy(folders["llama", False] / "config.json", tmp_path)
    with pytest.raises(ValueError, match="safetensors"):
        load(tmp_path, bits, dtype=dtype)
    assert torch.get_default_dtype() == torch.float32


# -- tied embeddings --

TIED = ("llama", "gpt2", "opt", "bloom", "falcon")


@pytest.mark.parametrize("bits", [None, "nf4"])
@pytest.mark.parametrize("family", TIED)
def test_tied_embeddings_stay_one_parameter_that_is_read_once(family: str, bits: str | None, tmp_path: Path) -> None:
    network = tiny_network(family, language_model=True, tie_word_embeddings=True)
    folder = save(network, tmp_path)
    placement = Recorder()
    found = load(folder, bits, language_model=True, placement=placement)
    assert is_tied(found)
    assert torch.equal(found.get_input_embeddings().weight, network.get_input_embeddings().weight)
    calls = [call for call in placement.calls if call[:2] == ("parameter", (VOCABULARY_SIZE, WIDTH))]
    assert len(calls) == 1


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("kept", ["input", "output", "both"])
def test_a_tied_checkpoint_may_have_either_name_or_both(kept: str, family: str, tmp_path: Path) -> None:
    network = tiny_network(family, language_model=True, tie_word_embeddings=True)
    folder = save(network, tmp_path)
    names = {
        "input": next(n for n, m in network.named_modules() if m is network.get_input_embeddings()) + ".weight",
        "output": next(n for n, m in network.named_modules() if m is network.get_output_embeddings()) + ".weight",
    }

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = next(tensors.pop(name) for name in names.values() if name in tensors)
        return {**tensors, **{name: weight.clone() for end, name in names.items() if kept in (end, "both")}}

    rewrite(folder, change)
    found = load(folder, language_model=True)
    assert is_tied(found)
    assert_same(found, stock(folder, language_model=True))


def test_tied_by_the_config_but_stored_with_different_numbers(tmp_path: Path) -> None:
    """Transformers leaves them apart with a warning; here the configuration has to say so."""
    folder = save(tiny_network("llama", language_model=True, tie_word_embeddings=False), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="two different tensors; set tie_word_embeddings to false"):
        load(folder, language_model=True)
    load(folder)  # without the head there is nothing to tie


def test_a_base_models_checkpoint_has_no_head_unless_it_is_tied(tmp_path: Path) -> None:
    untied = save(tiny_network("llama"), tmp_path / "untied")
    with pytest.raises(ValueError, match=r"lacks 1 weights of llama \(lm_head\.weight\), which would be random"):
        load(untied, language_model=True)
    tied = save(tiny_network("llama", tie_word_embeddings=True), tmp_path / "tied")
    found = load(tied, language_model=True)
    assert is_tied(found)
    assert_same(found, stock(tied, language_model=True))


# -- names --


@pytest.mark.parametrize("bits", [None, "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "falcon", "gpt_neox"])
def test_the_base_models_prefix_is_added_and_removed(family: str, bits: str | None, tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True} if family not in ("bert",) else {}
    with_prefix = tiny_network(family, language_model=True, **config)
    prefix = with_prefix.base_model_prefix + "."
    folder = save(with_prefix, tmp_path)
    assert any(name.startswith(prefix) for name in load_file(folder / SINGLE))
    base = load(folder, bits)

    def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    rewrite(folder, bare)
    assert_equal_tensors(load(folder, bits), base)
    whole = load(folder, bits, language_model=True)
    assert_equal_tensors(getattr(whole, prefix[:-1]), base)


def assert_equal_tensors(found: nn.Module, expected: nn.Module) -> None:
    one, other = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (found, expected)]
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_old_names_of_layer_norms(tmp_path: Path) -> None:
    network = tiny_network("bert")
    folder = save(network, tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for new, was in old.items():
            tensors = {name.replace(new, was): tensor for name, tensor in tensors.items()}
        return tensors

    rewrite(folder, rename)
    assert any(name.endswith("LayerNorm.gamma") for name in load_file(folder / SINGLE))
    assert_same(load(folder), stock(folder))
    found = dict(load(folder, "int8").named_parameters())
    assert torch.equal(
        found["encoder.layer.0.output.LayerNorm.weight"],
        dict(network.named_parameters())["encoder.layer.0.output.LayerNorm.weight"],
    )


def test_tensors_the_model_does_not_know_are_left_in_the_file(tmp_path: Path) -> None:
    folder = save(tiny_network("llama"), tmp_path)
    expected = stock(folder)
    extra = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "score.weight": torch.zeros(2, WIDTH)}
    rewrite(folder, lambda tensors: {**tensors, **extra, "counter": torch.zeros(1, dtype=torch.int64)})
    assert_same(load(folder), expected)


# -- buffers --

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1e4,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 5e5,
    },
}


@pytest.mark.parametrize("bits", [None, "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_frequencies_and_what_is_computed_with_them(
    rope: str, dtype: str, bits: str | None, tmp_path: Path
) -> None:
    network = tiny_network("llama", rope_parameters=ROPES[rope], max_position_embeddings=64)
    folder = save(network, tmp_path)
    found, expected = load(folder, bits, dtype=dtype), stock(folder, dtype=dtype)
    wanted = dict(expected.named_buffers())
    assert set(wanted) >= {"rotary_emb.inv_freq"}
    plain = tiny_network("llama", max_position_embeddings=64)
    assert not torch.equal(wanted["rotary_emb.inv_freq"], plain.rotary_emb.inv_freq) or rope == "dynamic"
    for name, buffer in wanted.items():
        assert torch.equal(found.get_buffer(name), buffer), name
        assert found.get_buffer(name).dtype == buffer.dtype
    if bits is None:
        ids = torch.arange(4, 84)[None]  # longer than max_position_embeddings
        with torch.no_grad():
            assert torch.equal(found(input_ids=ids)[0], expected(input_ids=ids)[0])


def test_persistent_buffers_are_read_and_need_not_be_there(tmp_path: Path) -> None:
    config = tf.DeepseekV3Config(
        vocab_size=VOCABULARY_SIZE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=64, moe_intermediate_size=32, n_routed_experts=4, n_group=2, topk_group=1,
        num_experts_per_tok=2, num_key_value_heads=HEADS, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1, pad_token_id=PAD,
    )  # fmt: skip
    network = tf.AutoModel.from_config(config)
    name = "layers.1.mlp.gate.e_score_correction_bias"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
        network.get_buffer(name).normal_()
    network.save_pretrained(tmp_path, save_original_format=False)
    found, expected = load(tmp_path, dtype="bfloat16"), stock(tmp_path, dtype="bfloat16")
    assert torch.equal(found.get_buffer(name), network.get_buffer(name))
    assert_same(found, expected)
    rewrite(tmp_path, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    assert torch.equal(load(tmp_path).get_buffer(name), torch.zeros(4))


# -- the hub's cache --


def test_a_hub_id_loads_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save(tiny_network("llama"), tmp_path / "saved", sharded=True)
    (repository / "blobs").mkdir()
    for file in sorted((tmp_path / "saved").iterdir()):
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    for reference in ("main", "v1"):
        path = repository / "refs" / reference
        path.parent.mkdir(exist_ok=True)
        path.write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    expected = stock(tmp_path / "saved")
    assert_same(load("someone/tiny"), expected)
    assert_same(load("someone/tiny", revision="v1"), expected)
    assert isinstance(load("someone/tiny", "nf4").layers[0].mlp.up_proj, FrozenLinear)
    with pytest.raises(ValueError, match=r"^model\.name_or_path: 'someone/other' cannot be loaded"):
        load("someone/other")
    with pytest.raises(ValueError, match=r"^model\.name_or_path: 'someone/tiny' cannot be loaded"):
        load("someone/tiny", revision="v2")
    shard = next(snapshot.glob("model-00002-of-*"))
    shard.unlink()
    with pytest.raises(ValueError, match=r"^model\.name_or_path: 'someone/tiny' cannot be loaded") as caught:
        load("someone/tiny")
    assert shard.name in str(caught.value)


# -- errors --


def refusal(folder: Path, bits: str | None = None, **options: Any) -> str:
    """The message, the same on the rank that reads and on one that does not; nothing was handed over before it."""
    placement = Recorder()
    with pytest.raises(ValueError, match=r"^model\.name_or_path: ") as caught:
        load(folder, bits, placement=placement, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert placement.calls == []
    if placement.agreed:
        assert placement.agreed == [message]
        with pytest.raises(ValueError) as heard:  # noqa: PT011 - the whole message is compared
            load(folder, bits, placement=Listener(message), **options)
        assert str(heard.value) == message
    return message


def assert_names(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused(tmp_path: Path, sharded: bool) -> None:
    network = tiny_network("llama")
    network.config.save_pretrained(tmp_path)
    torch.save(
        network.state_dict(), tmp_path / ("pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin")
    )
    assert_names(refusal(tmp_path), ".bin", "pickle", "save_pretrained")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    tiny_network("llama").config.save_pretrained(tmp_path)
    assert_names(refusal(tmp_path), SINGLE, INDEX)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    save(tiny_network("llama"), tmp_path)
    (tmp_path / "config.json").unlink()
    assert_names(refusal(tmp_path), "config.json")


@pytest.mark.parametrize("content", [{"model_type": "no_such_model"}, {"hidden_size": 4}, "{"])
def test_an_architecture_nobody_knows(tmp_path: Path, content: Any) -> None:
    save(tiny_network("llama"), tmp_path)
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    message = refusal(tmp_path)
    assert content != {"model_type": "no_such_model"} or "no_such_model" in message


def test_an_encoder_decoder(tmp_path: Path) -> None:
    config = tf.T5Config(vocab_size=VOCABULARY_SIZE, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    save(tf.AutoModel.from_config(config), tmp_path)
    assert_names(refusal(tmp_path), "t5 is an encoder-decoder")


def test_a_model_without_a_language_model(tmp_path: Path) -> None:
    tf.DPRConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.name_or_path: .*dpr; choose another model or another task"):
        load(tmp_path, language_model=True)


def test_a_missing_shard(tmp_path: Path) -> None:
    save(tiny_network("llama"), tmp_path, sharded=True)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[2]
    gone.unlink()
    assert_names(refusal(tmp_path), INDEX, gone.name, "not there", "copy or download")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        "[]",
    ],
)
def test_a_damaged_index(tmp_path: Path, index: str) -> None:
    save(tiny_network("llama"), tmp_path, sharded=True)
    (tmp_path / INDEX).write_text(index)
    refusal(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kept", ["nothing", "header", "most"])
def test_a_truncated_file(tmp_path: Path, kept: str, sharded: bool) -> None:
    save(tiny_network("llama"), tmp_path, sharded=sharded)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[: {"nothing": 0, "header": 100, "most": len(content) - 8}[kept]])
    assert_names(refusal(tmp_path), file.name, "truncated or damaged", "download or copy it again")


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize("bits", [None, "nf4", "int8"])
@pytest.mark.parametrize("name", ["norm.weight", "embed_tokens.weight", "layers.1.mlp.up_proj.weight"])
def test_a_missing_tensor(tmp_path: Path, name: str, bits: str | None) -> None:
    rewrite(save(tiny_network("llama"), tmp_path), without(name))
    assert_names(refusal(tmp_path, bits), "lacks 1 weights", f"({name})", "whole model")


def test_a_missing_bias_of_a_quantized_layer(tmp_path: Path) -> None:
    rewrite(save(tiny_network("gpt2"), tmp_path), without("h.1.mlp.c_fc.bias"))
    assert_names(refusal(tmp_path, "nf4"), "h.1.mlp.c_fc.bias")


def test_many_missing_tensors_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    folder = save(tiny_network("llama"), tmp_path)
    rewrite(folder, lambda tensors: {"norm.weight": tensors["norm.weight"]})
    message = refusal(folder)
    total = len(dict(tiny_network("llama").named_parameters()))
    assert_names(message, f"lacks {total - 1} weights", "...")
    assert len(message) < 400


@pytest.mark.parametrize("bits", [None, "nf4", "int8"])
@pytest.mark.parametrize(
    ("family", "name", "change"),
    [
        ("llama", "layers.1.mlp.up_proj.weight", lambda weight: weight.T),
        ("llama", "layers.1.mlp.up_proj.weight", lambda weight: weight[:-1]),
        ("llama", "layers.1.mlp.up_proj.weight", lambda weight: weight.reshape(-1)),
        ("llama", "embed_tokens.weight", lambda weight: weight[:-1]),
        ("llama", "norm.weight", lambda weight: weight[None]),
        ("gpt2", "h.1.mlp.c_fc.weight", lambda weight: weight.T),
        ("gpt2", "h.1.mlp.c_fc.bias", lambda bias: bias[1:]),
    ],
)
def test_a_tensor_of_another_shape(
    tmp_path: Path, family: str, name: str, change: Callable[[torch.Tensor], torch.Tensor], bits: str | None
) -> None:
    folder = save(tiny_network(family), tmp_path)
    before = load_file(folder / SINGLE)[name]
    rewrite(folder, lambda tensors: {**tensors, name: change(tensors[name])})
    expected, found = list(before.shape), list(change(before).shape)
    assert_names(refusal(folder, bits), SINGLE, f"tensor {name} has shape {found}", f"needs {expected}")


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_a_checkpoint_that_says_it_is_quantized(tmp_path: Path, config: dict[str, Any], method: str) -> None:
    folder = save(tiny_network("llama"), tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": config}))
    message = refusal(folder, "nf4")
    assert_names(message, f"already quantized ({method})", "original", "quantization.load_in_4bit")


@pytest.mark.parametrize("bits", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_tensors_in_a_checkpoint_that_does_not_say_so(
    tmp_path: Path, dtype: torch.dtype, bits: str | None
) -> None:
    folder = save(tiny_network("llama"), tmp_path)
    name = "layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: {**tensors, name: tensors[name].to(dtype)})
    assert_names(refusal(folder, bits), SINGLE, f"tensor {name} is", "already quantized", "original weights")


def test_a_checkpoint_that_bitsandbytes_quantized(folders: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    config = tf.BitsAndBytesConfig(load_in_4bit=True)
    stock(folders["llama", False], quantization_config=config).save_pretrained(tmp_path)
    assert_names(refusal(tmp_path, "nf4"), "already quantized (bitsandbytes)")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_names(refusal(tmp_path, "nf4"), "already quantized")


def mixtral() -> tf.PreTrainedModel:
    config = tf.MixtralConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=64, num_local_experts=2, pad_token_id=PAD,
    )  # fmt: skip
    return tf.AutoModel.from_config(config)


def test_a_family_whose_weights_are_rearranged_is_refused_by_name(tmp_path: Path) -> None:
    save(mixtral(), tmp_path)
    with pytest.raises(ValueError, match=r"^model\.name_or_path: .*mixtral rearranges .*experts.* tensor by tensor"):
        load(tmp_path)


def test_rearranged_once_it_loads(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path, save_original_format=False)
    assert_same(load(tmp_path), stock(tmp_path))


OWN_CODE = """
from pathlib import Path
import transformers
Path({marker!r}).write_text("ran")
class OwnConfig(transformers.LlamaConfig):
    model_type = "own"
class OwnModel(transformers.LlamaModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with code of its own, and a file that appears when the code runs."""
    folder, marker = tmp_path / "own", tmp_path / "ran"
    save(tiny_network("llama"), folder)
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    content = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "own", "auto_map": code}))
    return folder, marker


def test_code_of_a_models_repository_does_not_run(own_code: tuple[Path, Path]) -> None:
    folder, marker = own_code
    refusal(folder)
    assert not marker.exists()


def test_the_field_that_would_let_code_run_is_named(own_code: tuple[Path, Path]) -> None:
    assert_names(refusal(own_code[0]), "model.trust_remote_code")


def test_code_of_a_models_repository_runs_where_the_recipe_says_so(
    own_code: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = own_code
    monkeypatch.setattr(tf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = load(folder, trust_remote_code=True)
    assert marker.exists()
    assert type(found).__name__ == "OwnModel"
    assert_equal_tensors(found, tiny_network("llama"))


# -- one tensor at a time --

KEPT = 0.5
DEPTH, SIDE = 4, 256


class Sharing(Recorder):
    """Keeps a share of each tensor, and marks in the profile when it took it, and when the files had been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[int] = []

    def agree(self, problem: str | None) -> str | None:
        with torch.profiler.record_function("opened"):
            return super().agree(problem)

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        with torch.profiler.record_function("taken"):
            self.calls.append(("parameter", tuple(value.shape), value.dtype))
            share = value.reshape(-1)[: math.ceil(value.numel() * KEPT)].clone()
            self.shares.append(share.nbytes)
            return nn.Parameter(share, requires_grad=False)


class Whole(Sharing):
    """Keeps everything: what the bound is there to notice."""

    def parameter(self, value: torch.Tensor) -> nn.Parameter:
        super().parameter(value)
        return nn.Parameter(value, requires_grad=False)


def live_bytes_above_shares(folder: Path, bits: str | None, placement: Sharing) -> int:
    """Most bytes allocated at any instant of a load beyond the shares taken until then."""
    model = ModelSection(name_or_path=str(folder), dtype="bfloat16")
    quantization = QuantizationSection(**BITS[bits]) if bits else None
    network = build_skeleton(model, quantization, read_config(model), language_model=False, attn_implementation="eager")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        streaming.stream_weights(network, model, placement)
    internal: Any = profile.profiler
    events = sorted(
        (event for event in internal.kineto_results.events() if event.name() in ("[memory]", "opened", "taken")),
        key=lambda event: event.start_ns(),
    )
    opened = next(index for index, event in enumerate(events) if event.name() == "opened")
    shares = iter(placement.shares)
    live = taken = most = 0
    # The files are mapped, not read: their pages are the system's to take back.
    for event in events[opened + 1 :]:
        if event.name() == "taken":
            taken += next(shares)
        else:
            live += event.nbytes()
            most = max(most, live - taken)
    assert next(shares, None) is None
    return most


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.9 million numbers in float32."""
    folder = tmp_path_factory.mktemp("large")
    network = tiny_network(
        "llama", hidden_size=SIDE, intermediate_size=SIDE, num_hidden_layers=DEPTH, num_key_value_heads=HEADS
    )
    network.save_pretrained(folder, max_shard_size="2MB")
    return folder


@pytest.mark.parametrize("bits", [None, *BITS])
def test_what_is_held_while_loading_is_the_shares_one_packed_tensor_and_a_chunk(
    large: Path, bits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 4096
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", chunk)
    per_number = {None: 2, "nf4": 0.5, "fp4_double": 0.5, "int8": 1}[bits]
    scales = SIDE * SIDE / 64 * 4 * 2 if bits else 0  # float32, and once more while they are quantized
    # Bytes for each number of a chunk: itself, in float32, scaled, and its code (in 64 bits for fp4's table).
    temporaries = {None: 0, "nf4": 20, "fp4_double": 34, "int8": 22}[bits] * chunk
    bound = SIDE * SIDE * per_number + scales + temporaries + 4096
    sharing, whole = Sharing(), Whole()
    assert live_bytes_above_shares(large, bits, sharing) <= bound
    assert sum(sharing.shares) > 2 * bound, "the model is large enough to tell"
    assert live_bytes_above_shares(large, bits, whole) > bound


class CountingFile:
    """A safetensors file that counts the numbers read of each tensor."""

    read: ClassVar[Counter[str]] = Counter()
    opened: ClassVar[list[Path]] = []

    def __init__(self, file: Path, framework: str) -> None:
        self.opened.append(file)
        self._file = safe_open(file, framework=framework)

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        tensor = self._file.get_tensor(name)
        self.read[name] += tensor.numel()
        return tensor

    def get_slice(self, name: str) -> CountingSlice:
        return CountingSlice(self._file.get_slice(name), name)


class CountingSlice:
    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._inner, attribute)

    def __getitem__(self, index: Any) -> torch.Tensor:
        part: torch.Tensor = self._inner[index]
        CountingFile.read[self._name] += part.numel()
        return part


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter[str], list[Path]]]:
    CountingFile.read, CountingFile.opened = Counter(), []
    monkeypatch.setattr(weights, "safe_open", CountingFile)
    yield CountingFile.read, CountingFile.opened


@pytest.mark.parametrize("bits", [None, *BITS])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bloom"])
def test_each_number_of_the_file_is_read_once(
    folders: dict[tuple[str, bool], Path], family: str, bits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1000)
    sizes = {}
    for file in folders[family, True].glob("*.safetensors"):
        sizes |= {name: tensor.numel() for name, tensor in load_file(file).items()}
    with counted_reads(monkeypatch) as (read, opened):
        load(folders[family, True], bits, language_model=family != "bert")
    assert len(opened) == len(set(opened)) == len(list(folders[family, True].glob("*.safetensors")))
    used = {name: size for name, size in sizes.items() if family != "bert" or not name.startswith("cls.")}
    assert dict(read) == used


@pytest.mark.parametrize("bits", [None, *BITS])
@pytest.mark.parametrize("language_model", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_rank_is_handed_the_same_tensors_in_the_same_order_and_one_reads(
    folders: dict[tuple[str, bool], Path],
    family: str,
    language_model: bool,
    bits: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, listening = Recorder(), Listener()
    network = load(folders[family, False], bits, language_model=language_model, placement=reading)
    with counted_reads(monkeypatch) as (_, opened):
        other = load(folders[family, False], bits, language_model=language_model, placement=listening)
        assert opened == []
    assert reading.calls == listening.calls
    assert Counter(reading.calls) == Counter(
        [
            *(("parameter", tuple(p.shape), p.dtype) for p in network.parameters()),
            *(("buffer", tuple(b.shape), b.dtype) for b in shared_buffers(network)),
        ]
    )
    shapes = [[(n, t.shape, t.dtype) for n, t in (*m.named_parameters(), *m.named_buffers())] for m in (network, other)]
    assert shapes[0] == shapes[1]
    assert not any(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))


def shared_buffers(network: nn.Module) -> Iterator[torch.Tensor]:
    """Buffers whose contents come from the file."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            packed = isinstance(module, FrozenLinear) and name != "absmax_code"
            if packed or name not in module._non_persistent_buffers_set:
                yield buffer


def test_a_rank_that_does_not_read_raises_what_the_reading_one_found(
    folders: dict[tuple[str, bool], Path],
) -> None:
    placement = Listener("model.name_or_path: no such tensor")
    with pytest.raises(ValueError, match=r"^model\.name_or_path: no such tensor$"):
        load(folders["llama", False], placement=placement)
    assert placement.calls == []
    assert placement.agreed == [None]


def test_the_backbone_goes_where_the_placement_says(folders: dict[tuple[str, bool], Path]) -> None:
    placement = Recorder()
    model = ModelSection(name_or_path=str(folders["llama", True]), dtype="float32")
    backbone = load_backbone(model, QuantizationSection(**BITS["nf4"]), placement=placement)
    assert len([call for call in placement.calls if call[0] == "parameter"]) == len(list(backbone.parameters()))


# -- memory of the process --


def mapped_bytes(folder: Path) -> int:
    """Bytes of a folder's files that count as this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("bits", [None, "nf4"])
def test_what_was_read_of_a_file_does_not_stay_in_memory(
    bits: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network("llama", hidden_size=256, num_hidden_layers=20)
    save(network, tmp_path)
    stored, largest = (tmp_path / SINGLE).stat().st_size, max(p.nbytes for p in network.parameters())
    found = []

    class Watcher(Recorder):
        def parameter(self, value: torch.Tensor) -> nn.Parameter:
            if len(self.calls) % 30 == 0:  # asking takes longer than loading
                found.append(mapped_bytes(tmp_path))
            return super().parameter(value)

    load(tmp_path, bits, placement=Watcher())
    assert max(found) > 0.7 * stored  # within the limit, files stay open
    found.clear()
    monkeypatch.setattr(weights, "MAPPED_BYTES", 2 * largest)
    load(tmp_path, bits, placement=Watcher())
    # A page fault brings in its neighbours.
    assert max(found) < 3 * largest + 2**20 < 0.5 * stored
    assert mapped_bytes(tmp_path) == 0
