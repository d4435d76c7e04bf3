"""What a model's name may point at: a SentencePiece model alone loads, what is no model is refused by its kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from tiny_models import TEXT, tiny_network
from transformers import LlamaTokenizer

from sktune.backbone import load_backbone, load_tokenizer
from sktune.recipe.rules.model import gguf_file_is_inside_a_folder, gguf_has_neither_revision_nor_code
from sktune.sections import ModelSection


def refused(path: Path | str) -> str:
    with pytest.raises(ValueError, match=r"^model\.name_or_path: ") as caught:
        load_backbone(ModelSection(name_or_path=str(path), dtype="float32"))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# -- SentencePiece alone --


@pytest.fixture
def sentence_piece(tmp_path: Path) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{TEXT} of the film , {i} and the city" for i in range(40)]), model_writer=model,
        vocab_size=310, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    return tmp_path


def test_a_folder_with_a_sentencepiece_model_alone(sentence_piece: Path) -> None:
    found = load_tokenizer(ModelSection(name_or_path="x", tokenizer=str(sentence_piece)))
    expected = LlamaTokenizer.from_pretrained(sentence_piece, add_bos_token=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece / "tokenizer.model"))
    assert found.is_fast
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    for text in (TEXT, "film", "the city , é 漢"):
        assert found(text)["input_ids"] == [processor.bos_id(), *processor.encode(text)]
        offsets = found(text, return_offsets_mapping=True)["offset_mapping"]
        assert len(offsets) == len(found(text)["input_ids"])
    assert found.pad_token_id is not None
    assert [file.name for file in sentence_piece.iterdir()] == ["tokenizer.model"]  # nothing is written there


# -- other things than a model --


def test_an_adapter_of_peft(tmp_path: Path) -> None:
    save_file({"lora_A": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    message = refused(tmp_path)
    assert "is a PEFT adapter" in message
    assert "(some/base)" in message
    tiny_network("llama").config.save_pretrained(tmp_path)  # some trainers write it, too
    assert "is a PEFT adapter" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    assert "is a PEFT adapter" in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "consolidated.00.pth", "weights"])
def test_a_single_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    message = refused(tmp_path / name)
    assert "give the folder" in message
    assert ".gguf" in message


@pytest.mark.parametrize("name", ["consolidated.00.pth", "consolidated.safetensors"])
def test_the_format_of_the_makers(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "params.json").write_text("{}")
    assert "format of its makers" in refused(tmp_path)
    tiny_network("llama").save_pretrained(tmp_path)  # beside transformers' own files they do no harm
    load_backbone(ModelSection(name_or_path=str(tmp_path), dtype="float32"))


@pytest.mark.parametrize("ending", [".bin", ".pth", ".pt", ".ckpt"])
def test_pickles(ending: str, tmp_path: Path) -> None:
    tiny_network("llama").config.save_pretrained(tmp_path)
    (tmp_path / f"model{ending}").write_bytes(b"anything")
    message = refused(tmp_path)
    assert f"only {ending} weights, which are pickle" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "compressed"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed"),
    ],
)
def test_weights_that_say_they_are_quantized(said: dict[str, Any], method: str, tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **said}))
    message = refused(tmp_path)
    assert f"already quantized ({method}" in message
    assert "give the original 16- or 32-bit weights" in message


@pytest.mark.parametrize(
    ("file", "method"),
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")],
)
def test_weights_that_a_file_beside_them_says_are_quantized(file: str, method: str, tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    (tmp_path / file).write_text("{}")
    assert f"already quantized ({method})" in refused(tmp_path)


# -- the recipe's fields --


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"name_or_path": "a/b.gguf", "gguf_file": "c.gguf"}, ["model.gguf_file"]),
        ({"name_or_path": "embedded:llama", "gguf_file": "c.gguf"}, ["model.gguf_file"]),
        ({"name_or_path": "a/b", "gguf_file": "c.safetensors"}, ["model.gguf_file"]),
        ({"name_or_path": "a/b.gguf", "revision": "v1"}, ["model.revision"]),
        ({"name_or_path": "a/b.gguf", "trust_remote_code": True}, ["model.trust_remote_code"]),
        ({"name_or_path": "a/b", "gguf_file": "c.gguf", "trust_remote_code": True}, ["model.trust_remote_code"]),
        ({"name_or_path": "a/b.gguf", "tokenizer": "c/d", "revision": "v1", "trust_remote_code": True}, []),
        ({"name_or_path": "a/b", "gguf_file": "c.gguf", "revision": "v1"}, []),
        ({"name_or_path": "a/b.gguf"}, []),
    ],
)
def test_fields_that_would_do_nothing(fields: dict[str, Any], wanted: list[str]) -> None:
    section = ModelSection(**fields)
    problems = [*gguf_file_is_inside_a_folder(section), *gguf_has_neither_revision_nor_code(section)]
    assert [problem.field for problem in problems] == wanted
