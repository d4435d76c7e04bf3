"""The embedded default: text generator, labelled files, shipped model and tokenizer, and their rebuild."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sktune.embedded import is_embedded, pairs, resolve, reviews
from sktune.embedded.build import build
from sktune.embedded.catalog import SHIPPED
from sktune.embedded.corpus import documents
from sktune.embedded.datasets import SIZES, write_datasets
from sktune.embedded.lexicon import GENERIC
from sktune.embedded.names import split_of
from sktune.embedded.news import ENTITY_TYPES
from sktune.embedded.pretrain import Schedule, Shape, packed_batches

Tagged = list[tuple[list[str], list[str]]]


def read_conll(path: Path) -> Tagged:
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    assert blocks[0].startswith("-DOCSTART-")
    rows = [[line.split(" ") for line in block.split("\n")] for block in blocks[1:]]
    return [([row[0] for row in block], [row[-1] for row in block]) for block in rows]


def name_words(sentences: Tagged) -> set[str]:
    tagged = {word for words, tags in sentences for word, tag in zip(words, tags, strict=True) if tag != "O"}
    return tagged - GENERIC


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("embedded:llama"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(resolve("embedded:llama"), dtype=torch.float32).eval()


def test_documents_depend_on_the_seed_alone():
    first, again, other = (list(islice(documents(seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_shipped_files_are_what_the_generator_writes(tmp_path: Path):
    seed = json.loads((SHIPPED / "build.json").read_text())["seed"]
    write_datasets(tmp_path, seed)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(written) == 9
    for path, content in written.items():
        assert (SHIPPED / "data" / path).read_bytes() == content, path


def test_names_of_evaluation_files_are_held_out():
    names = {split: name_words(read_conll(resolve("embedded:newswire") / f"{split}.conll")) for split in SIZES}
    assert all(len(words) > 200 for words in names.values())
    assert not names["train"] & names["validation"]
    assert not (names["train"] | names["validation"]) & names["test"]
    pretraining = {word for text in islice(documents(5), 3000) for word in text.split()}
    assert not pretraining & (names["train"] | names["validation"] | names["test"])
    assert {split_of(word) for word in names["test"]} == {"test"}


@pytest.mark.parametrize("split", SIZES)
def test_newswire_is_valid_iob2(split: str):
    sentences = read_conll(resolve("embedded:newswire") / f"{split}.conll")
    assert len(sentences) == SIZES[split]
    allowed = {"O"} | {f"{mark}-{kind}" for mark in "BI" for kind in ENTITY_TYPES}
    for words, tags in sentences:
        assert len(words) == len(tags)
        assert set(tags) <= allowed
        for before, tag in pairwise(["O", *tags]):
            assert tag[0] != "I" or before[1:] == tag[1:], (words, tags)
    assert {tag for _, tags in sentences for tag in tags} == allowed


@pytest.mark.parametrize(
    ("name", "columns", "labels"),
    [
        ("sentiment", {"text", "label"}, reviews.LABELS),
        ("entailment", {"premise", "hypothesis", "label"}, pairs.LABELS),
    ],
)
def test_sentence_files_parse(name: str, columns: set[str], labels: tuple[str, ...]):
    for split, size in SIZES.items():
        rows = [json.loads(line) for line in (resolve(f"embedded:{name}") / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == size
        assert all(set(row) == columns for row in rows)
        counts = [sum(row["label"] == label for row in rows) for label in labels]
        assert sum(counts) == size
        assert min(counts) > size / len(labels) / 2


def test_model_is_small_and_its_widths_fit_four_bit_blocks(model):
    assert 1e6 < model.num_parameters() < 3e6
    assert model.config.hidden_size % 64 == 0
    assert model.config.intermediate_size % 64 == 0
    assert (resolve("embedded:llama") / "model.safetensors").stat().st_size < 8e6


def test_tokenizer_adds_bos_pads_and_round_trips(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer("The")["input_ids"][0] == 1
    assert tokenizer(["a b", "a"], padding=True)["attention_mask"] == [[1, 1, 1], [1, 1, 0]]
    for text in ("The singer Anna Kovar left for Bertal .", "one .\ntwo .", "naïve  №42 → 東京"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_tokenizer_agrees_with_sentencepiece_and_with_words(tokenizer):
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(model_file=str(resolve("embedded:llama") / "tokenizer.model"))
    for text in islice(documents(9), 300):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text)
        if "\n" not in text:
            words = tokenizer(text.split(" "), is_split_into_words=True, add_special_tokens=False)
            assert words["input_ids"] == ids


@torch.no_grad()
def test_model_predicts_unseen_text_and_types_held_out_names(model, tokenizer):
    words, _ = read_conll(resolve("embedded:newswire") / "test.conll")[0]
    ids = tokenizer(" ".join(words), return_tensors="pt")["input_ids"]
    assert model(input_ids=ids, labels=ids).loss.item() < 0.6 * math.log(len(tokenizer))
    prompt = "recognize the people , organisations , places and miscellaneous names in the text :"
    expected = {
        "The doctor Dudrin": "person",
        "The carmaker Dudrin": "organisation",
        "A flood hit the village of Dudrin": "place",
        "The tournament Dudrin": "miscellaneous",
    }
    types = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in expected.values()]
    for text, wanted in expected.items():
        logits = model(**tokenizer(f"{prompt} {text}", return_tensors="pt")).logits[0, -1, types]
        assert list(expected.values())[int(logits.argmax())] == wanted


def test_resolve():
    assert resolve("embedded:llama").joinpath("config.json").is_file()
    assert resolve("embedded:sentiment").joinpath("train.jsonl").is_file()
    assert is_embedded("embedded:anything")
    assert not is_embedded("meta-llama/Llama-2-7b-hf")
    for name in ("embedded:gpt", "embedded:", "llama"):
        with pytest.raises(ValueError, match="embedded:newswire"):
            resolve(name)


def test_packed_rows_restart_positions_at_every_document(tokenizer):
    ids, positions = next(packed_batches(documents(1), tokenizer, batch_size=4, length=64))
    assert ids.shape == positions.shape == (4, 64)
    assert torch.equal(positions == 0, ids == tokenizer.bos_token_id)


def test_tiny_build_end_to_end_and_twice_the_same(tmp_path: Path):
    def tiny(folder: Path) -> dict[str, object]:
        return build(
            folder,
            seed=1,
            schedule=Schedule(steps=3, batch_size=2, length=64, warmup=1),
            shape=Shape(hidden_size=64, intermediate_size=64, layers=1, heads=2, kv_heads=1),
            vocab_size=400,
            tokenizer_documents=200,
            sizes={"train": 5, "validation": 3, "test": 3},
        )

    record = tiny(tmp_path / "one")
    assert record["sha256"] == tiny(tmp_path / "two")["sha256"]
    saved = json.loads((tmp_path / "one" / "build.json").read_text())
    assert saved == record
    content = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
    assert saved["sha256"]["model/model.safetensors"] == hashlib.sha256(content).hexdigest()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "model").dtype == torch.float16
    assert len(read_conll(tmp_path / "one" / "data" / "newswire" / "train.conll")) == 5
