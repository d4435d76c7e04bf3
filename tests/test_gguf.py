"""GGUF files: the numbers, configuration and tokenizer that transformers reads from them, in chunks, or a refusal."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as tf
from gguf import GGMLQuantizationType as Kind
from test_streaming import BITS, Listener, Recorder, assert_same, load
from tiny_models import OPENING, VOCABULARY
from training_fixtures import Workshop, merged
from transformers.convert_slow_tokenizer import bytes_to_unicode

import sktune.backbone.gguf as gguf_source
from sktune.backbone import load_backbone, load_tokenizer, streaming
from sktune.backbone.quantized import FrozenLinear
from sktune.backbone.skeleton import read_config
from sktune.cli import main
from sktune.sections import ModelSection, QuantizationSection

DEPTH, WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 2, 256, 512, 8, 2, 32
TOKENS = [*list(VOCABULARY)[:4], *bytes_to_unicode().values(), "ab"]
"""Special tokens, a token for each byte, and one merge."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTIZED_BY_PACKAGE = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
BLOCKS_ONLY = (Kind.Q4_K, Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.Q5_K, Kind.IQ4_NL, Kind.IQ4_XS)
"""The package only dequantizes these, so that their blocks are random bytes with scales of a sensible size."""
SCALES = {
    Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,), Kind.Q2_K: (80, 82), Kind.Q3_K: (108,),
    Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip
"""Where in a block its 16-bit scales are."""


def pack(values: np.ndarray, kind: Kind, generator: np.random.Generator) -> np.ndarray:
    if kind not in BLOCKS_ONLY:
        return gguf.quantize(values, kind)
    size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (values.size // size, width), dtype=np.uint8)
    for place in SCALES[kind]:
        scale = generator.uniform(1e-3, 2e-3, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def tensors_of(architecture: str, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        shapes["output.weight"] = (len(TOKENS), WIDTH)
    head = 128 if architecture == "qwen3" else HEAD_DIM  # transformers does not read it of qwen3
    for layer in range(DEPTH):
        block = f"blk.{layer}"
        shapes |= {
            f"{block}.attn_norm.weight": (WIDTH,),
            f"{block}.ffn_norm.weight": (WIDTH,),
            f"{block}.attn_q.weight": (HEADS * head, WIDTH),
            f"{block}.attn_k.weight": (KV_HEADS * head, WIDTH),
            f"{block}.attn_v.weight": (KV_HEADS * head, WIDTH),
            f"{block}.attn_output.weight": (WIDTH, HEADS * head),
            f"{block}.ffn_gate.weight": (INNER, WIDTH),
            f"{block}.ffn_up.weight": (INNER, WIDTH),
            f"{block}.ffn_down.weight": (WIDTH, INNER),
        }
        if architecture == "qwen2":
            for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                shapes[f"{block}.attn_{name}.bias"] = (rows * head,)
        if architecture == "qwen3":
            shapes |= {f"{block}.attn_q_norm.weight": (head,), f"{block}.attn_k_norm.weight": (head,)}
    return shapes


Tensors = dict[str, tuple[np.ndarray, Kind]]


def random_tensors(architecture: str = "llama", kind: Kind = Kind.F32, *, tied: bool = True) -> Tensors:
    """Matrices of a kind and vectors in 32 bits, as llama.cpp writes them."""
    generator = np.random.default_rng(7)
    tensors: Tensors = {}
    for name, shape in tensors_of(architecture, tied).items():
        values = generator.normal(0, 0.08, shape).astype(np.float32) + (len(shape) == 1)
        of = kind if len(shape) == 2 else Kind.F32
        tensors[name] = pack(values, of, generator), of
    return tensors


def write(
    path: Path,
    tensors: Tensors | None = None,
    architecture: str = "llama",
    *,
    fields: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    tokenizer: bool = True,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """A tiny model with a byte-level vocabulary; `fields` adds metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, endianess=endianess)
    writer.add_block_count(DEPTH)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(TOKENS)
        writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(OPENING)
        writer.add_eos_token_id(VOCABULARY["</s>"])
        writer.add_unk_token_id(VOCABULARY["<unk>"])
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    fields(writer)
    for name, (values, kind) in (random_tensors(architecture) if tensors is None else tensors).items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stock(path: Path, *, language_model: bool, dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    auto: Any = tf.AutoModelForCausalLM if language_model else tf.AutoModel
    found = auto.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="eager")
    return found.eval()


# -- weights --


@pytest.mark.parametrize("language_model", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_numbers_are_those_of_transformers(
    architecture: str, tied: bool, language_model: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf", random_tensors(architecture, tied=tied), architecture)
    found = load(path, language_model=language_model)
    assert_same(found, stock(path, language_model=language_model))
    if language_model:
        assert (found.get_output_embeddings().weight is found.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("kind", [*QUANTIZED_BY_PACKAGE, *BLOCKS_ONLY], ids=lambda kind: kind.name)
def test_every_kind_of_block_is_dequantized_as_transformers_does(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a chunk ends within a head, and a block of rows within a chunk."""
    path = write(tmp_path / "m.gguf", random_tensors("llama", kind, tied=False))
    expected = stock(path, language_model=True)
    assert all(torch.isfinite(parameter).all() for parameter in expected.parameters())
    for elements in (gguf_source.CHUNK_ELEMENTS, 7 * WIDTH, 1):
        monkeypatch.setattr(gguf_source, "CHUNK_ELEMENTS", elements)
        assert_same(load(path, language_model=True), expected)
    assert_same(load(path, dtype="bfloat16"), stock(path, language_model=False, dtype=torch.bfloat16))


def test_llama_cpps_order_of_rows_is_undone(tmp_path: Path) -> None:
    """Against a model of transformers whose tensors are written as llama.cpp's converter does."""
    config = tf.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rope_theta=50_000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip
    original = tf.LlamaForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, DEPTH)
    tensors: Tensors = {}
    for name, parameter in original.named_parameters():
        values = parameter.detach().numpy()
        for projection, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if projection in name:  # convert_hf_to_gguf.py, LlamaModel.permute
                halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        tensors[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = values, Kind.F32
    path = write(tmp_path / "m.gguf", tensors)
    found = load(path, language_model=True)
    for name, parameter in original.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, original(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_K], ids=lambda kind: kind.name)
def test_quantized_again_as_a_folder_with_the_same_numbers(
    kind: Kind, bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", random_tensors("llama", kind))
    plain = load(path, language_model=True)
    plain.config.dtype = None
    plain.save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 5000)
    found, expected = (load(where, bits, language_model=True) for where in (path, tmp_path / "folder"))
    assert isinstance(found.model.layers[0].self_attn.q_proj, FrozenLinear)
    assert_same(found, expected)


def test_a_rank_that_does_not_read_is_handed_the_same_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", random_tensors("llama", Kind.Q8_0))
    reading, listening = Recorder(), Listener()
    load(path, "nf4", placement=reading)
    load(path, "nf4", placement=listening)
    assert reading.calls == listening.calls


# -- where the file is --


@pytest.mark.parametrize("place", ["file", "field", "folder"])
def test_a_file_by_its_path_by_its_name_or_alone_in_its_folder(place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "here" / "m.gguf")
    section = {
        "file": ModelSection(name_or_path=str(path), dtype="float32"),
        "field": ModelSection(name_or_path=str(path.parent), gguf_file="m.gguf", dtype="float32"),
        "folder": ModelSection(name_or_path=str(path.parent), dtype="float32"),
    }[place]
    if place == "field":
        write(path.parent / "other.gguf", random_tensors("qwen2"), "qwen2")
    assert_same(load_backbone(section).model, stock(path, language_model=False))
    assert load_tokenizer(section).chat_template


def test_several_files_and_none_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name)
    with pytest.raises(ValueError, match=r"^model\.name_or_path: .*2 \.gguf files.*model\.gguf_file: a\.gguf, b\.gguf"):
        read_config(ModelSection(name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^model\.gguf_file: .*no file 'c\.gguf'.*a\.gguf, b\.gguf"):
        read_config(ModelSection(name_or_path=str(tmp_path), gguf_file="c.gguf"))
    with pytest.raises(ValueError, match=r"^model\.name_or_path: there is no file .*c\.gguf"):
        read_config(ModelSection(name_or_path=str(tmp_path / "c.gguf")))


def test_a_folder_of_safetensors_stays_one_beside_a_gguf_file(tmp_path: Path) -> None:
    path = write(tmp_path / "folder" / "m.gguf", random_tensors("llama", Kind.Q4_0))
    exact = load(write(tmp_path / "exact.gguf"), language_model=True)
    exact.save_pretrained(path.parent)
    assert torch.equal(load(path.parent).norm.weight, exact.model.norm.weight)
    assert torch.equal(load(path.parent).embed_tokens.weight, exact.model.embed_tokens.weight)


def test_a_file_of_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, offline; a branch names a commit."""
    repository = tmp_path / "models--someone--tiny-GGUF"
    path = write(repository / "snapshots" / "0123abcd" / "m.gguf", random_tensors("llama", Kind.Q8_0))
    for reference in ("main", "v1"):
        (repository / "refs" / reference).parent.mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    expected = stock(path, language_model=False)
    assert_same(load("someone/tiny-GGUF", gguf_file="m.gguf"), expected)
    assert_same(load("someone/tiny-GGUF", gguf_file="m.gguf", revision="v1"), expected)
    assert load_tokenizer(ModelSection(name_or_path="someone/tiny-GGUF", gguf_file="m.gguf"))("a")["input_ids"]
    with pytest.raises(ValueError, match=r"^model\.name_or_path: 'someone/tiny-GGUF' cannot be loaded"):
        load("someone/tiny-GGUF", gguf_file="other.gguf")


# -- configuration and tokenizer --


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_configuration_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", None, architecture)
    found = read_config(ModelSection(name_or_path=str(path))).to_dict()
    expected = tf.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).to_dict()
    different = {name for name in found | expected if found.get(name) != expected.get(name)}
    assert different <= {"_name_or_path", "_model_name_or_path"}
    assert found["rope_parameters"]["rope_theta"] == 50_000.0


def test_the_tokenizer_is_the_files_whatever_lies_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    expected = tf.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tf.AutoTokenizer.from_pretrained(tf_folder()).save_pretrained(tmp_path)
    found = load_tokenizer(ModelSection(name_or_path=str(path)))
    assert found.is_fast
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert found.chat_template == expected.chat_template
    assert found.pad_token == found.eos_token == "</s>"
    other = load_tokenizer(ModelSection(name_or_path=str(path), tokenizer=str(tf_folder())))
    assert other("a")["input_ids"] != found("a")["input_ids"]
    as_tokenizer = load_tokenizer(ModelSection(name_or_path="x", tokenizer=str(path)))
    assert as_tokenizer("abc")["input_ids"] == found("abc")["input_ids"]


def tf_folder() -> str:
    from sktune.embedded import model_location

    return model_location("embedded:llama")


def test_the_header_alone_is_read_for_configuration_and_tokenizer(tmp_path: Path) -> None:
    """A sparse file of 8 GiB: reading its tensors would take minutes and more memory than there is."""
    path = write(tmp_path / "m.gguf")
    header = gguf_source.read_header(path)
    content = bytearray(path.read_bytes())
    last = max(header.tensors.values(), key=lambda tensor: tensor.start)
    name = next(name for name, tensor in header.tensors.items() if tensor == last).encode()
    place = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    dimensions = 4 + 8 * struct.unpack_from("<I", content, place)[0]
    content[place + dimensions + 4 : place + dimensions + 12] = struct.pack("<Q", 2**33)
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(2**33 + len(content))
    assert read_config(ModelSection(name_or_path=str(path))).hidden_size == WIDTH
    assert load_tokenizer(ModelSection(name_or_path=str(path)))("a")["input_ids"]


# -- refusals --


def refused(path: Path) -> str:
    """The message of the configuration, the weights and the tokenizer: one sentence that names file and field."""
    with pytest.raises(ValueError, match=r"^model\.name_or_path: ") as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    with pytest.raises(ValueError, match=r"^model\.tokenizer: ") as of_tokenizer:
        load_tokenizer(ModelSection(name_or_path="x", tokenizer=str(path)))
    assert str(of_tokenizer.value).removeprefix("model.tokenizer") == message.removeprefix("model.name_or_path")
    return message


@pytest.mark.parametrize("kept", [0, 3, 20, 300, -1])
def test_a_truncated_file(kept: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(path)
    assert "truncated or damaged" in message or "not a GGUF file" in message
    assert kept < 4 or "download or copy it again" in message


def test_a_damaged_header(tmp_path: Path) -> None:
    """Nothing but a ValueError, whatever a byte of the header becomes."""
    path, messages = write(tmp_path / "m.gguf", tokenizer=False), set()
    content = path.read_bytes()[:1500]
    for place in range(0, len(content), 29):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ 0xFF]))
        try:
            read_config(ModelSection(name_or_path=str(path)))
        except ValueError as error:
            messages.add(str(error))
        with path.open("r+b") as file:
            file.write(content)
    assert messages
    assert all(message.startswith("model.name_or_path: ") for message in messages)


def test_another_file_with_that_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"\x80\x04pickle, say" * 9)
    assert "not a GGUF file" in refused(path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda writer: writer.add_uint16("split.count", 3), "3 parts of a split GGUF file.*--merge"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"rotary frequencies \(yarn\)"),
        (lambda writer: writer.add_expert_count(8), "mixture of experts"),
        (lambda writer: writer.add_string("general.alignment", "x"), "truncated or damaged"),
        (lambda writer: writer.add_type("adapter"), "of the type 'adapter'"),
    ],
)
def test_what_is_not_read_as_it_should_be(
    change: Callable[[gguf.GGUFWriter], object], wanted: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf", fields=change)
    with pytest.raises(ValueError, match=wanted):
        read_config(ModelSection(name_or_path=str(path)))
    refused(path)


def test_big_endian(tmp_path: Path) -> None:
    assert "big-endian" in refused(write(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG))


@pytest.mark.parametrize("architecture", ["mamba", "gemma3", "something_new"])
def test_an_architecture_that_is_not_understood(architecture: str, tmp_path: Path) -> None:
    message = refused(write(tmp_path / "m.gguf", random_tensors(), architecture))
    assert f"architecture {architecture!r}" in message
    assert all(name in message for name in ARCHITECTURES)


def refused_weights(path: Path) -> str:
    placement = Recorder()
    with pytest.raises(ValueError, match=r"^model\.name_or_path: ") as caught:
        load(path, placement=placement)
    assert placement.calls == []
    assert placement.agreed == [str(caught.value)]
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["blk.1.ffn_up.weight"]
    assert "layers.1.mlp.up_proj.weight" in refused_weights(write(tmp_path / "m.gguf", tensors))


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.2.attn_norm.weight", "rope_freqs.weight"])
def test_a_tensor_without_a_place(name: str, tmp_path: Path) -> None:
    """Transformers drops it, and the model is another one."""
    tensors = {**random_tensors(), name: (np.ones(WIDTH, np.float32), Kind.F32)}
    path = write(tmp_path / "m.gguf", tensors)
    with pytest.raises(ValueError, match="rotary frequencies" if "rope" in name else f"1 tensors .{name}, say"):
        load(path)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = {**random_tensors(), "blk.0.attn_k.weight": (np.ones((65, WIDTH), np.float32), Kind.F32)}
    message = refused_weights(write(tmp_path / "m.gguf", tensors))
    assert f"has shape [65, {WIDTH}]" in message
    assert f"needs [{KV_HEADS * HEAD_DIM}, {WIDTH}]" in message


def test_a_kind_that_cannot_be_dequantized(tmp_path: Path) -> None:
    tensors = {**random_tensors(), "blk.0.attn_k.weight": (np.ones((64, WIDTH), np.int32), Kind.I32)}
    message = refused_weights(write(tmp_path / "m.gguf", tensors))
    assert "stored as I32" in message and "Q4_K" in message


def test_a_header_that_says_too_little(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(DEPTH)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"does not say its embedding_length, feed_forward_length|does not say its"):
        read_config(ModelSection(name_or_path=str(path)))


def test_a_file_without_a_vocabulary_needs_a_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tokenizer=False, fields=lambda writer: writer.add_vocab_size(len(TOKENS)))
    assert read_config(ModelSection(name_or_path=str(path))).vocab_size == len(TOKENS)
    with pytest.raises(ValueError, match=r"^model\.name_or_path: no tokenizer .*model\.tokenizer"):
        load_tokenizer(ModelSection(name_or_path=str(path)))


# -- the commands --


def test_plan_train_evaluate_and_predict(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(workshop.folder / "m.gguf", random_tensors("llama", Kind.Q4_1))
    changes = merged(
        {"model": {"name_or_path": str(path)}, "quantization": {"load_in_4bit": True}},
        {"task": {"name": "sequence_classification"}, "training": {"max_steps": 2, "eval_steps": 2}},
        {"data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}},
    )
    recipe = workshop.write("run", changes)
    assert main(["validate", str(recipe)]) == 0
    assert main(["plan", str(recipe), "--gpus", "2", "--gpu-memory", "1GiB", "--json"]) == 0
    output = capsys.readouterr().out
    planned = json.loads(output[output.index("{\n") :])
    assert planned["model"] == str(path)
    assert main(["train", str(recipe)]) == 0
    assert main(["evaluate", str(workshop.output("run")), "--split", "test"]) == 0
    capsys.readouterr()
    assert main(["predict", str(workshop.output("run")), "--text", "w1 w2"]) == 0
    assert "people" in (shown := capsys.readouterr().out) or "places" in shown


def test_the_backbone_of_a_file_takes_part_in_training_as_that_of_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", random_tensors("llama", Kind.Q8_0))
    section = ModelSection(name_or_path=str(path), dtype="float32")
    backbone = load_backbone(section, QuantizationSection(load_in_8bit=True), language_model=True)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
