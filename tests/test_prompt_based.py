"""prompt_based and in_context: what the language model is asked, what it is shown, and that it alone answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny_models import ENCODERS, MASK, tiny_network, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from training_fixtures import (
    ONE_RANK,
    TASKS,
    TWO_BY_TWO,
    Sections,
    SeveralRanks,
    Workshop,
    adapter,
    assert_close_run,
    assert_same_run,
    cut_back,
    merged,
    points,
    run_jobs,
    scores_of,
    summary_of,
    tracked,
)

import sktune
from sktune.answering import predict
from sktune.backbone import load_backbone, load_tokenizer
from sktune.backbone.quantized import FrozenLinear
from sktune.cli import main
from sktune.comparison.results import read_results
from sktune.data import Example
from sktune.inference import evaluate_run
from sktune.methods.in_context.config import InContextConfig
from sktune.methods.prompt_based.config import PromptBasedConfig
from sktune.methods.template.demonstrations import Demonstrations
from sktune.methods.template.encode import template_encoder
from sktune.methods.template.template import read_template
from sktune.planning import plan
from sktune.planning.activations import count_activations, dry_run, observe
from sktune.planning.skeleton import find_skeleton
from sktune.planning.trained_bytes import Engine
from sktune.recipe import load_recipe
from sktune.sections import DataSection, ModelSection, QuantizationSection
from sktune.training.checkpoint import list_checkpoints
from sktune.training.evaluate import NOT_READ
from sktune.training.setup import Setup, prepare

TEMPLATE = "w30 {text} w31 {answer}"
WORDS = {"people": "w50", "places": "w51"}
LABELS = tuple(WORDS)
FAMILIES = ("llama", "mistral_window", "gpt_neox", "gpt2", "phi", "opt", "falcon", "bloom", "bert", "roberta")


def method(name: str, **fields: Any) -> tuple[Sections, Sections]:
    """Changes of the workshop's recipe, over sentences about people and places."""
    section = {"text": ..., "rank": ..., "name": name, "template": TEMPLATE, "label_words": WORDS, **fields}
    return TASKS["sequence"], {"method": section, "training": {"learning_rate": 1e-3, "head_learning_rate": ...}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved language models, masked ones of encoders; BERT and GPT-2 with tied embeddings."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family) / "model"
        tiny_network(family, language_model=True).save_pretrained(found[family])
        tiny_tokenizer(family in ENCODERS).save_pretrained(found[family])
    return found


def assembled(workshop: Workshop, folder: Path, *changes: Sections) -> Setup:
    model: Sections = {"model": {"name_or_path": str(folder)}}
    return prepare(load_recipe(workshop.write("assembled", model, *changes)), ONE_RANK)


def scored(assembly: Setup, rows: Sequence[Any], side: str) -> tuple[torch.Tensor, float]:
    """(logits [rows, labels], loss) of one batch."""
    assembly.collator.padding_side = side
    batch = assembly.collator(rows)
    with torch.no_grad():
        output = assembly.model.eval()(**{name: tensor for name, tensor in batch.items() if name not in NOT_READ})
    return output.logits, float(output.loss)


def by_hand(folder: Path, texts: Sequence[str], words: Sequence[str]) -> torch.Tensor:
    """Logits of the words' tokens by the plain model, each text alone; MASK stands in an encoder's."""
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(folder)
    encoder = MASK in texts[0]
    auto: Any = tf.AutoModelForMaskedLM if encoder else tf.AutoModelForCausalLM
    plain = auto.from_pretrained(folder).eval()
    tokens = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    logits = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id) if encoder else -1
        with torch.no_grad():
            logits.append(plain(**inputs).logits[0, at, tokens])
    return torch.stack(logits)


# -- the answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_is_the_plain_model_on_the_filled_template(
    workshop: Workshop, folders: dict[str, Path], family: str, side: str
) -> None:
    template = "w30 {text} w31 {answer} w32" if family in ENCODERS else TEMPLATE
    assembly = assembled(workshop, folders[family], *method("in_context", template=template))
    assert assembly.raw is not None
    examples = assembly.raw.train[:7]
    assert len({len(example.text.split()) for example in examples}) > 2  # so there is padding
    rows = assembly.encode(examples, "train").rows
    logits, loss = scored(assembly, rows, side)
    answer = f"{MASK} w32" if family in ENCODERS else ""
    texts = [f"w30 {example.text} w31 {answer}".strip() for example in examples]
    expected = by_hand(folders[family], texts, list(WORDS.values()))
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    truth = torch.tensor([LABELS.index(str(example.reference)) for example in examples])
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(expected, truth)), abs=1e-5)
    assert assembly.model.parameter_counts()[0] == 0


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_few_shot_is_the_plain_model_on_demonstrations_and_template(
    workshop: Workshop, folders: dict[str, Path], family: str
) -> None:
    assembly = assembled(workshop, folders[family], *method("in_context", demonstrations=2))
    assert assembly.raw is not None
    encoder = assembly.task.encoder  # type: ignore[attr-defined]
    examples = (assembly.raw.validation or [])[:5]
    shown = encoder.demonstrations.of(examples)
    texts = [
        " ".join(f"w30 {one.text} w31 {WORDS[str(one.reference)]}" for one in before) + f" w30 {example.text} w31"
        for example, before in zip(examples, shown, strict=True)
    ]
    assert all(len(before) == 4 for before in shown)
    texts = [f"{text} {MASK}" for text in texts] if family == "bert" else texts
    logits, _ = scored(assembly, assembly.encode(examples, "validation").rows, "left")
    torch.testing.assert_close(logits, by_hand(folders[family], texts, list(WORDS.values())), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_a_mask_or_an_end_in_the_text_is_not_the_answer(
    workshop: Workshop, folders: dict[str, Path], family: str
) -> None:
    assembly = assembled(workshop, folders[family], *method("in_context"))
    example = Example(0, f"w1 {MASK} w2 </s>", reference="people")
    (row,) = assembly.encode([example], "text").rows
    text = f"w30 {example.text} w31" + (f" {MASK}" if family == "roberta" else "")
    ids = tiny_tokenizer(family == "roberta")(text)["input_ids"]
    assert row.input_ids == ids
    assert row.answer == (len(ids) - 2 if family == "roberta" else len(ids) - 1)


def test_pairs_are_read_through_the_template(workshop: Workshop, folders: dict[str, Path]) -> None:
    pair = method(
        "in_context", template="{text} w31 {answer} w32 {text_pair}", label_words={"same": "w50", "other": "w51"}
    )
    assembly = assembled(workshop, folders["bert"], *pair, TASKS["pair"])
    assert assembly.raw is not None
    examples = assembly.raw.train[:4]
    logits, _ = scored(assembly, assembly.encode(examples, "train").rows, "right")
    texts = [f"{example.text} w31 {MASK} w32 {example.text_pair}" for example in examples]
    words = [{"same": "w50", "other": "w51"}[label] for label in assembly.labels or ()]
    torch.testing.assert_close(logits, by_hand(folders["bert"], texts, words), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_prompt_based_starts_as_in_context(workshop: Workshop, folders: dict[str, Path], family: str) -> None:
    results = []
    for name in ("in_context", "prompt_based"):
        assembly = assembled(workshop, folders[family], *method(name, demonstrations=1))
        assert assembly.raw is not None
        rows = assembly.encode(assembly.raw.train[:6], "train").rows
        results.append(scored(assembly, rows, "right"))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    trained = workshop.train("run", {"model": {"name_or_path": str(folders[family])}}, *method("prompt_based"))
    start = assembled(workshop, folders[family], *method("in_context"))
    assert start.raw is not None
    first = points(workshop.output("run"))["train/loss", 1]
    batch = _first_batch(start)
    assert first == pytest.approx(scored(start, batch, "right")[1], rel=1e-5)
    assert trained["trainable_parameters"] == trained["all_parameters"]


def _first_batch(assembly: Setup) -> list[Any]:
    from sktune.training.steps import Steps

    assert assembly.raw is not None
    rows = assembly.encode(assembly.raw.train, "train").rows
    return [rows[number] for number in Steps(assembly, rows, ONE_RANK).row_numbers(0)]


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("layers", [None, 1])
def test_checkpointing_and_padding_change_no_gradient(
    workshop: Workshop, folders: dict[str, Path], family: str, layers: int | None
) -> None:
    found = []
    for checkpointing in (False, True):
        changes: Sections = {"training": {"gradient_checkpointing": checkpointing}}
        assembly = assembled(workshop, folders[family], *method("prompt_based", layers=layers), changes)
        rows = _first_batch(assembly)
        for side in ("right", "left"):
            assembly.collator.padding_side = side  # type: ignore[assignment]
            batch = {name: tensor for name, tensor in assembly.collator(rows).items() if name not in NOT_READ}
            assembly.model.zero_grad()
            assembly.model.train()(**batch).loss.backward()
            parameters = assembly.model.trainable_parameters()
            assert all(p.dtype == torch.float32 for p in parameters.values())
            found.append({name: p.grad for name, p in parameters.items()})
    if layers is not None:  # the uppermost of three blocks
        assert all(".2." in name for name in found[0])
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert gradient is not None and other[name] is not None, name
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


# -- words ------------------------------------------------------------------------------------------------------

_CORPUS = [
    "the movie was great and the actors were terrible", "It was great .", "It was terrible .", "a great great movie",
    "terrible , terrible", "Label: great", "Label: terrible", "greater terribly", "it was", "was it great ?",
] * 8  # fmt: skip


def _byte_level(mask_takes_space: bool = False) -> tf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", AddedToken("<mask>", lstrip=mask_takes_space, special=True)]
    raw.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    raw.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", cls_token="<s>", sep_token="</s>", bos_token="<s>",
        mask_token="<mask>",
    )  # fmt: skip


def _sentencepiece() -> Any:
    return load_tokenizer(ModelSection(name_or_path="embedded:llama"))


def _wordpiece() -> tf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    raw.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]",
    )  # fmt: skip


TOKENIZERS = {
    "bytes": _byte_level,
    "roberta": lambda: _byte_level(True),
    "sentencepiece": _sentencepiece,
    "wordpiece": _wordpiece,
}
DATA = DataSection(path="nowhere", max_length=16)


def encoder_of(tokenizer: Any, is_encoder: bool, train: Sequence[Example] = (), **fields: Any) -> Any:
    words = {"good": "great", "bad": "terrible"}
    section = InContextConfig(**{"label_words": words, **fields})
    data = fields.pop("data", DATA)
    return template_encoder(
        section, data, tuple(section.label_words or ()), tokenizer, train, is_encoder=is_encoder, seed=0
    )


@pytest.mark.parametrize("template", ["{text} It was {answer}", "{text}\nLabel:{answer}", "{text}\n{answer}"])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_decoders_word_is_what_follows_its_prompt(kind: str, template: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.eos_token = tokenizer.eos_token or "</s>"
    encoder = encoder_of(tokenizer, False, template=template)
    (row,) = encoder.encode([Example(0, "a movie", reference="good")], "text", None).rows
    for word, token in zip(("great", "terrible"), encoder.template.tokens, strict=True):
        filled = template.format(text="a movie", answer=word)
        assert [*row.input_ids, token] == tokenizer(filled)["input_ids"][: len(row.input_ids) + 1]
    assert row.answer == len(row.input_ids) - 1


@pytest.mark.parametrize("template", ["{text} It was {answer} .", "{answer} : {text}", "{text} ( {answer} )", "{text}"])
@pytest.mark.parametrize("kind", ["bytes", "roberta", "wordpiece"])
def test_an_encoders_word_is_what_its_mask_stands_for(kind: str, template: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    if "{answer}" not in template:
        template = "{text} {answer}"
    encoder = encoder_of(tokenizer, True, template=template, label_words={"good": "great", "bad": "it"})
    (row,) = encoder.encode([Example(0, "was it", reference="good")], "text", None).rows
    assert row.input_ids[row.answer] == tokenizer.mask_token_id
    for word, token in zip(("great", "it"), encoder.template.tokens, strict=True):
        filled = tokenizer(template.format(text="was it", answer=word))["input_ids"]
        assert filled == [*row.input_ids[: row.answer], token, *row.input_ids[row.answer + 1 :]]


def test_words_that_cannot_be_told_apart_or_are_unknown_are_named() -> None:
    tokenizer = _byte_level()
    with pytest.raises(ValueError, match=r"'greatest' \(of bad\) begin with the same token") as caught:
        encoder_of(tokenizer, False, label_words={"good": "great", "bad": "greatest"})
    assert "'great' (of good)" in str(caught.value)
    with pytest.raises(ValueError, match=r"w999.* is unknown to"):
        encoder_of(tiny_tokenizer(), False, label_words={"good": "w1", "bad": "w999"})
    with pytest.raises(ValueError, match="has no mask token"):
        encoder_of(tiny_tokenizer(), True, label_words={"good": "w1", "bad": "w2"})
    with pytest.raises(ValueError, match=r"goes on behind \{answer\}"):
        encoder_of(tokenizer, False, template="{text} It was {answer} .")
    section = InContextConfig(label_words={"good": "great", "worse": "terrible"})
    with pytest.raises(ValueError, match="has no word for bad; the labels are good, bad"):
        read_template(section, ("good", "bad"), tokenizer, pair=False, is_encoder=False)
    with pytest.raises(ValueError, match="labels that the data does not have: worse"):
        read_template(section, ("good",), tokenizer, pair=False, is_encoder=False)


def test_of_a_word_of_several_tokens_the_first_is_scored_and_that_is_said() -> None:
    tokenizer = _byte_level()
    encoder = encoder_of(tokenizer, False, label_words={"good": "wasgreat", "bad": "terrible"})
    assert tokenizer(" wasgreat", add_special_tokens=False)["input_ids"][0] == encoder.template.tokens[0]
    assert "the first is scored: 'wasgreat' by 'Ġwas'" in "\n".join(encoder.report)


def test_without_template_and_words_the_log_says_which_are_taken() -> None:
    template = read_template(InContextConfig(), ("great", "terrible"), _byte_level(), pair=True, is_encoder=False)
    assert template.report[0] == "template: '{text} {text_pair} Answer: {answer}' (the default)"
    assert template.report[1] == "label words: great: 'great', terrible: 'terrible'"
    assert template.fill("{a}", "b}", "c").text == "{a} b} Answer: c"


# -- length -----------------------------------------------------------------------------------------------------


def _row_text(encoder: Any, example: Example, limit: int | None = None) -> tuple[str, list[str]]:
    encoded = encoder.encode([example], "text", limit)
    return encoder.tokenizer.decode(encoded.rows[0].input_ids, skip_special_tokens=False), encoded.report


@pytest.mark.parametrize(("side", "kept"), [("right", "w1 w2 w3"), ("left", "w4 w5 w6")])
def test_the_text_is_cut_and_never_the_template(side: str, kept: str) -> None:
    tokenizer = tiny_tokenizer(encoder=True)
    tokenizer.truncation_side = side
    data = DataSection(path="nowhere", max_length=3)
    section = InContextConfig(template="w30 {text} w31 {answer} w32", label_words=WORDS)
    encoder = template_encoder(section, data, LABELS, tokenizer, (), is_encoder=True, seed=0)
    text, report = _row_text(encoder, Example(0, "w1 w2 w3 w4 w5 w6", reference="people"))
    assert text == f"<s> w30 {kept} w31 {MASK} w32 </s>"
    assert report == ["text: 1 of 1 inputs truncated to 3 tokens"]


def test_of_a_pair_the_longer_text_gives_first() -> None:
    data = DataSection(path="nowhere", max_length=5, text_pair_column="b")
    section = InContextConfig(template="{text} w30 {text_pair} w31 {answer}", label_words=WORDS)
    encoder = template_encoder(section, data, LABELS, tiny_tokenizer(), (), is_encoder=False, seed=0)
    text, _ = _row_text(encoder, Example(0, "w1 w2 w3 w4 w5 w6", "w7 w8", reference="people"))
    assert text == "<s> w1 w2 w3 w30 w7 w8 w31"
    text, _ = _row_text(encoder, Example(0, "w1 w2 w3 w4 w5 w6", "w7 w8 w9 w10", reference="people"))
    assert text == "<s> w1 w2 w3 w30 w7 w8 w31"


def test_demonstrations_that_find_no_room_are_left_out_whole() -> None:
    train = [Example(i, f"w{i} w{i + 1} w{i + 2}", reference=LABELS[i % 2]) for i in range(4)]
    train.append(Example(4, "w1 " * 9, reference="people"))  # would have to be cut
    data = DataSection(path="nowhere", max_length=5)
    section = InContextConfig(template=TEMPLATE, label_words=WORDS, demonstrations=2)
    encoder = template_encoder(section, data, LABELS, tiny_tokenizer(), train, is_encoder=False, seed=0)
    assert "1 training texts of more than 5 tokens are not used" in "\n".join(encoder.report)
    example = Example(9, "w40 w41 w42 w43 w44 w45", reference="people")
    whole, report = _row_text(encoder, example)
    assert len(whole.split()) == 4 * 6 + 8
    assert report == ["text: 1 of 1 inputs truncated to 5 tokens"]
    short, report = _row_text(encoder, example, 8 + 2 * 6 + 3)
    assert short == "<s> " + " ".join(whole.split()[1 + 2 * 6 :])  # the two last ones
    assert "2 demonstrations left out in 1 of 1 inputs" in report[1]
    bare, _ = _row_text(encoder, example, 9)
    assert bare == "<s> w30 w40 w41 w42 w43 w44 w31"
    with pytest.raises(ValueError, match=r"data.max_length: 5 tokens in a template of 3 exceed the 7 .*up to 4"):
        encoder.encode([example], "text", 7)


# -- demonstrations -----------------------------------------------------------------------------------------------

_TRAIN = [
    Example(i, text, reference=label)
    for i, (text, label) in enumerate(
        [
            ("a b c", "people"), ("a b", "people"), ("x y", "people"), ("a b c d", "places"), ("y z", "places"),
            ("a b c", "places"), ("q", "places"),
        ]
    )
]  # fmt: skip


def test_random_demonstrations_are_drawn_once_by_the_seed() -> None:
    one, again, other = (Demonstrations(_TRAIN, LABELS, 2, "random", seed) for seed in (0, 0, 1))
    inputs = [Example(0, "something else"), Example(1, "anything")]
    shown = one.of(inputs)
    assert shown[0] == shown[1] == again.of(inputs[:1])[0]
    assert sorted(str(example.reference) for example in shown[0]) == ["people"] * 2 + ["places"] * 2
    assert any(Demonstrations(_TRAIN, LABELS, 2, "random", seed).of(inputs[:1])[0] != shown[0] for seed in range(1, 5))
    assert len(other.of(inputs)[0]) == 4


@pytest.mark.parametrize("choose", ["random", "similar"])
def test_an_input_is_never_its_own_demonstration(choose: Any) -> None:
    for seed in range(5):
        shown = Demonstrations(_TRAIN, LABELS, 2, choose, seed).of(_TRAIN)
        for example, others in zip(_TRAIN, shown, strict=True):
            assert example.text not in [other.text for other in others]
            assert len(others) == 4


def test_similar_demonstrations_are_the_nearest_of_each_label_and_the_nearest_comes_last() -> None:
    shown = Demonstrations(_TRAIN, LABELS, 1, "similar", 0)
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit([example.text for example in _TRAIN])
    vectors = vectorizer.transform([example.text for example in _TRAIN])
    for text in ("a b c d e", "z", "a", "y x", "nothing known"):
        likeness = (vectorizer.transform([text]) @ vectors.T).toarray()[0]
        chosen = shown.of([Example(0, text)])[0]
        expected = [
            max((row for row in range(len(_TRAIN)) if _TRAIN[row].reference == label), key=lambda row: likeness[row])
            for label in LABELS
        ]
        assert {example.row for example in chosen} == set(expected)
        assert likeness[chosen[0].row] <= likeness[chosen[1].row]


def test_a_label_with_too_few_examples_is_said() -> None:
    few = Demonstrations(_TRAIN, (*LABELS, "things"), 4, "random", 0)
    assert few.report == [
        "demonstrations: label people has 3 training examples, fewer than the 4 asked for",
        "demonstrations: label things has 0 training examples, fewer than the 4 asked for",
    ]
    with pytest.raises(ValueError, match=r"method.choose: similar compares words"):
        Demonstrations([Example(0, "?!", reference="people")], LABELS, 1, "similar", 0)


# -- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_the_whole_head_stays_unquantized(folders: dict[str, Path], family: str, bits: str) -> None:
    section = ModelSection(name_or_path=str(folders[family]), dtype="float32")
    backbone = load_backbone(section, QuantizationSection.model_validate({bits: True}), language_model=True)
    packed = {name for name, module in backbone.model.named_modules() if isinstance(module, FrozenLinear)}
    assert packed and all(name.startswith(f"{backbone.model.base_model_prefix}.") for name in packed)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_is_loaded_as_transformers_loads_it(folders: dict[str, Path], family: str) -> None:
    network = load_backbone(ModelSection(name_or_path=str(folders[family]), dtype="float32"), language_model=True).model
    plain = tf.AutoModelForMaskedLM.from_pretrained(folders[family])
    assert type(network) is type(plain)
    expected = plain.state_dict()
    assert set(network.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("family", "gone"), [("bert", "cls.predictions.transform.dense.weight"), ("llama", "lm_head.weight")]
)
def test_a_checkpoint_without_its_head_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, family: str, gone: str
) -> None:
    for file in folders[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of {family}.*{gone}"):
        load_backbone(ModelSection(name_or_path=str(tmp_path), dtype="float32"), language_model=True)
    load_backbone(ModelSection(name_or_path=str(tmp_path), dtype="float32"))


# -- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("quantization", [{}, {"load_in_4bit": True}])
def test_in_context_is_a_run_without_a_step(
    workshop: Workshop,
    folders: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    quantization: dict[str, Any],
) -> None:
    from mlflow import MlflowClient

    changes: tuple[Sections, ...] = (
        {"model": {"name_or_path": str(folders[family])}, "quantization": quantization, "task": {"pooling": "mean"}},
        *method("in_context", demonstrations=1, choose="similar"),
    )
    with caplog.at_level(logging.INFO, "sktune"):
        summary = workshop.train("run", *changes, tracked(tmp_path / "mlflow.db"))
    assert "in_context trains nothing: no step is taken" in caplog.text
    assert "without effect, since the language model's own head answers: task.pooling" in caplog.text
    output = workshop.output("run")
    assert (summary["steps"], summary["best_step"], summary["trainable_parameters"]) == (0, 0, 0)
    assert {"validation/accuracy", "test/accuracy", "test/loss"} <= set(summary)
    assert summary_of(output) == summary
    assert not list_checkpoints(output) and adapter(output) == {}
    assert {key for key in points(output)} == {(f"validation/{name}", 0) for name in _metrics(summary)}
    assert json.loads((output / "adapter" / "adapter.json").read_text())["trainable_parameters"] == 0

    scores = {f"test/{name}": value for name, value in evaluate_run(output, "test", ONE_RANK).items()}
    assert scores == {name: value for name, value in summary.items() if name.startswith("test/")}
    records = [json.loads(line) for line in (output / "predictions" / "test.jsonl").read_text().splitlines()]
    tests = [json.loads(line)["text"] for line in (Path(workshop.base["data"]["path"]) / "test.jsonl").open()]
    answers = list(predict(output, tests[:4], None, ONE_RANK))
    by_row = {record["row"]: record for record in records}
    for row, answer in enumerate(answers):
        assert answer["label"] == by_row[row]["prediction"]
        assert answer["probabilities"] == pytest.approx(by_row[row]["probabilities"], abs=1e-5)

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation/accuracy"] == summary["validation/accuracy"]

    again = workshop.train("run", *changes, {"training": {"resume": "auto"}})
    assert scores_of(again) == scores_of(summary)


def _metrics(summary: dict[str, Any]) -> list[str]:
    return [name.removeprefix("validation/") for name in summary if name.startswith("validation/")]


def test_in_context_without_validation_or_test_still_ends(workshop: Workshop) -> None:
    blind: Sections = {"data": {"validation": None, "test": None}, "training": {"eval_steps": ...}}
    summary = workshop.train("blind", *method("in_context"), blind)
    assert summary["steps"] == 0 and summary["best_step"] is None


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_prompt_based_learns_and_is_what_it_was_when_it_is_read_again(
    workshop: Workshop, folders: dict[str, Path], family: str
) -> None:
    changes = ({"model": {"name_or_path": str(folders[family])}}, *method("prompt_based", demonstrations=1))
    summary = workshop.train("run", *changes)
    curve = points(workshop.output("run"), "validation/loss")
    assert curve["validation/loss", 8] < workshop.train("start", changes[0], *method("in_context"))["validation/loss"]
    scores = {f"test/{name}": value for name, value in evaluate_run(workshop.output("run"), "test", ONE_RANK).items()}
    assert scores == pytest.approx({name: value for name, value in summary.items() if name.startswith("test/")})


@pytest.mark.parametrize("choose", ["random", "similar"])
def test_resumed_equals_uninterrupted_with_the_same_demonstrations(workshop: Workshop, choose: str) -> None:
    changes = method("prompt_based", demonstrations=1, choose=choose, layers=1)
    workshop.train("whole", *changes)
    cut_back(workshop.output("whole"), 4, workshop.output("parts"))
    workshop.train("parts", *changes, {"training": {"resume": "auto"}})
    assert_same_run(workshop.output("whole"), workshop.output("parts"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["prompt_based", "in_context"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_plan_is_what_a_real_pass_holds(
    workshop: Workshop, folders: dict[str, Path], family: str, name: str, checkpointing: bool
) -> None:
    changes: tuple[Sections, ...] = (
        {"model": {"name_or_path": str(folders[family])}, "training": {"gradient_checkpointing": checkpointing}},
        *method(name, demonstrations=1),
    )
    recipe = load_recipe(workshop.write("planned", *changes))
    parts = find_skeleton(recipe)
    assert parts.length == 3 * (recipe.data.max_length + len(parts.tokenizer("w30 w31")["input_ids"]) + 1)
    planned = dry_run(parts.build(), recipe, parts.length, Engine(stage=2))
    model = parts.build()
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                values = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.05
                module._parameters[key] = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    if model.backbone.is_encoder:
        model.backbone.model.tie_weights()
    real = observe(model, recipe, parts.length, keep_gradients=False)
    found, expected = ([item for item in run.items() if "peak" not in item[0]] for run in (planned, real))
    assert found == expected
    kept = count_activations(parts, Engine(stage=2))
    assert (kept["after_forward"] - kept["resting"] > 10_000) == (name == "prompt_based")
    whole = plan(recipe, compare_checkpointing=False)
    summary = workshop.train("planned", *changes)
    if name == "in_context":
        assert whole.rest + whole.buffers == pytest.approx(summary["memory/frozen_bytes"], rel=0.01)
        assert whole.training_peak == whole.evaluation_peak and "trains nothing" in " ".join(whole.assumptions)
    assert (whole.trainable, whole.parameters) == (summary["trainable_parameters"], summary["all_parameters"])


def test_a_comparison_holds_both_beside_a_trained_method(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    short: Sections = {"training": {"max_steps": 2, "eval_steps": 2}}
    recipe = workshop.write("compared", TASKS["sequence"], short)
    assert main(["compare", str(recipe), "--methods", "in_context,prompt_based,head_only"]) == 0
    cells = {cell.method: cell for cell in read_results(workshop.output("compared")).cells}
    assert {name: cell.status for name, cell in cells.items()} == dict.fromkeys(
        ("in_context", "prompt_based", "head_only"), "finished"
    )
    assert cells["in_context"].summary["trainable_parameters"] == 0
    assert [step for step, _ in cells["in_context"].curve] == [0]
    report = (workshop.output("compared") / "report" / "report.md").read_text()
    assert any(line.startswith("| in_context |") and "| 0 |" in line for line in report.splitlines())
    capsys.readouterr()


def test_from_python_the_template_is_missing_and_that_is_said() -> None:
    for section in (InContextConfig(), PromptBasedConfig()):
        network = tiny_network("llama", language_model=True)
        with pytest.raises(ValueError, match=f"attach: {section.name} is a template on the data"):
            sktune.attach(network, tiny_tokenizer(), section, task="sequence_classification", num_labels=2)


# -- several ranks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(shared_workshop: Workshop, folders: dict[str, Path]) -> dict[int, SeveralRanks]:
    """Tied embeddings, and a head of several modules: BERT; by copies, and shared by two and by three."""
    changes = ({"model": {"name_or_path": str(folders["bert"])}, "data": {"padding_side": "left"}},)

    def jobs(ranks: int) -> list[dict[str, Any]]:
        found = []
        for name in ("prompt_based", "in_context"):
            for stage in ("zero3", None):
                label = f"template-{name}-{ranks}-{stage}"
                shape: Sections = {
                    "training": {"per_device_train_batch_size": 6 // ranks, "gradient_checkpointing": ranks == 3},
                    "distributed": {"deepspeed": stage},
                }
                fields = {"demonstrations": 1}
                recipe = shared_workshop.write(label, *changes, *method(name, **fields), shape)
                found.append({"name": label, "recipe": str(recipe)})
        return found

    return {ranks: run_jobs(shared_workshop, jobs(ranks), ranks) for ranks in (2, 3)}


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["prompt_based", "in_context"])
def test_zero3_with_any_number_of_ranks_equals_no_sharding(several: dict[int, SeveralRanks], name: str) -> None:
    reference = several[2].output(f"template-{name}-2-None")
    for ranks, stage in ((2, "zero3"), (3, None), (3, "zero3")):
        found = several[ranks].output(f"template-{name}-{ranks}-{stage}")
        assert_close_run(reference, found)
        if stage is not None and name == "in_context":
            whole = several[ranks].result(f"template-{name}-{ranks}-None")["memory/frozen_bytes"]
            assert several[ranks].result(f"template-{name}-{ranks}-{stage}")["memory/frozen_bytes"] < 0.8 * whole


@pytest.mark.distributed
def test_one_rank_equals_several(
    several: dict[int, SeveralRanks], shared_workshop: Workshop, folders: dict[str, Path]
) -> None:
    model: Sections = {"model": {"name_or_path": str(folders["bert"])}}
    six = merged(TWO_BY_TWO, {"training": {"per_device_train_batch_size": 6}})
    shared_workshop.train("template-alone", model, *method("prompt_based", demonstrations=1), six)
    assert_close_run(shared_workshop.output("template-alone"), several[2].output("template-prompt_based-2-zero3"))
