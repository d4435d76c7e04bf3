"""Encoding: words and their pieces, texts, pairs and prompts, with every family of tokenizer."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sktune.data import Coder, EncodedSplit, Example, load_splits
from sktune.embedded import resolve
from sktune.sections import DataSection
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.config import TaskConfig
from sktune.tasks.pair_classification.config import PairClassificationConfig
from sktune.tasks.regression.config import RegressionConfig
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

CORPUS = [
    "the quick brown fox jumps over the lazy dog in Berlin .",
    "Angela Merkel visited Paris , London and New York in 2015 !",
    "a good film with a terrible ending is neither good nor great",
] * 20
ODD = [
    "naïve",
    "🙂",
    "10\u00a0000",
    "New York",
    "\u200b",
    "ﬁne",
    "▁",
    "Ġ",
    "'s",
    "</s>",
    "日本語",
    "e\u0301te\u0301",
]
LABELS = ("O", "B-X", "I-X")
NER = TokenClassificationConfig()
LAST = NER.model_copy(update={"labelled_piece": "last"})
CLASSES = SequenceClassificationConfig()
PLAIN = DataSection(path="unused")


def byte_level(trim_offsets: bool, add_prefix_space: bool) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def word_piece() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    return BertTokenizer(vocab=tokenizer.get_vocab())


def sentence_piece(folder: Path, model_type: str) -> PreTrainedTokenizerBase:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=330 if model_type == "bpe" else 310,
        model_type=model_type, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return LlamaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    return {
        "byte_level": byte_level(trim_offsets=False, add_prefix_space=False),
        "byte_level_trimmed": byte_level(trim_offsets=True, add_prefix_space=True),
        "byte_level_prefixed": byte_level(trim_offsets=False, add_prefix_space=True),
        "word_piece": word_piece(),
        "sentence_piece": sentence_piece(tmp_path_factory.mktemp("bpe"), "bpe"),
    }


def spelling(piece: str) -> str:
    if piece.startswith("<0x"):
        return chr(int(piece[3:5], 16))
    return piece.removeprefix("##").lstrip("▁Ġ")


FAMILIES = ["byte_level", "byte_level_trimmed", "byte_level_prefixed", "word_piece", "sentence_piece"]


def tagged(*sentences: list[str]) -> list[Example]:
    return [
        Example(row=i, words=tuple(words), reference=tuple(LABELS[n % 3] for n in range(len(words))))
        for i, words in enumerate(sentences)
    ]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    task: TaskConfig,
    labels: tuple[str, ...] | None = None,
    data: DataSection = PLAIN,
    special: bool = False,
    candidates: bool = False,
    is_encoder: bool | None = None,
) -> EncodedSplit:
    if is_encoder is None:
        is_encoder = special and tokenizer.sep_token_id is not None
    coder = Coder(tokenizer, data, special, is_encoder)
    return build_task(task).encode(examples, coder, labels, "train", scoring=candidates)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_each_word_spell_it_and_carry_its_tag(
    tokenizers: dict[str, PreTrainedTokenizerBase], family: str
) -> None:
    tokenizer = tokenizers[family]
    words = ["Angela", "Merkel", "visited", "Zanzibar", ",", "didn't", "she", "?", "(yes)"]
    examples = tagged(words, words[::-1], ["one"])
    for special in (False, True):
        first = encode(tokenizer, examples, NER, LABELS, special=special)
        last = encode(tokenizer, examples, LAST, LABELS, special=special)
        assert first.report == []
        for example, row, other in zip(examples, first.rows, last.rows, strict=True):
            assert row.input_ids == tokenizer(" ".join(example.words), add_special_tokens=special)["input_ids"]
            assert isinstance(example.reference, tuple)
            assert isinstance(row.labels, list)
            assert isinstance(other.labels, list)
            for word, tag, start, end in zip(
                example.words, example.reference, row.word_pieces, other.word_pieces, strict=True
            ):
                pieces = tokenizer.convert_ids_to_tokens(row.input_ids[start : end + 1])
                spelled = "".join(spelling(piece) for piece in pieces)
                if tokenizer.unk_token_id is None or tokenizer.unk_token not in pieces:
                    assert spelled.lower() == word.lower()
                assert row.labels[start] == other.labels[end] == LABELS.index(tag)
            assert sum(label >= 0 for label in row.labels) == len(example.words)
            assert row.reference == list(example.reference)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [NER, LAST], ids=["first", "last"])
def test_odd_words_stay_apart_and_in_order(
    tokenizers: dict[str, PreTrainedTokenizerBase], family: str, task: TaskConfig
) -> None:
    tokenizer = tokenizers[family]
    sentences = [ODD, ODD[::-1], *([word] for word in ODD), *(["a", word, "b"] for word in ODD)]
    encoded = encode(tokenizer, tagged(*sentences), task, LABELS)
    removed = {"\u200b"} if family == "word_piece" else set()
    for words, row in zip(sentences, encoded.rows, strict=True):
        assert row.length > 0
        found = [position for position in row.word_pieces if position >= 0]
        assert found == sorted(set(found))
        assert {word for word, p in zip(words, row.word_pieces, strict=True) if p < 0} == removed & set(words)
    assert bool(encoded.report) == bool(removed)


def test_a_lone_space_mark_is_no_piece_of_a_word(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["sentence_piece"]
    words = ["日", "a", "語"]
    row = encode(tokenizer, tagged(words), NER, LABELS).rows[0]
    pieces = tokenizer.convert_ids_to_tokens(row.input_ids)
    assert pieces[0] == "▁"  # in front of the text, with the span of the first character
    assert [pieces[position] for position in row.word_pieces] == ["<0xE6>", "▁a", "<0xE8>"]
    last = encode(tokenizer, tagged(words), LAST, LABELS).rows[0]
    assert [pieces[position] for position in last.word_pieces] == ["<0xA5>", "▁a", "<0x9E>"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_that_are_cut_lose_their_label_and_are_counted(
    tokenizers: dict[str, PreTrainedTokenizerBase], side: str
) -> None:
    tokenizer = tokenizers["sentence_piece"]
    words = ["the", "Zanzibar", "fox", "Zanzibar"]
    whole = encode(tokenizer, tagged(words), NER, LABELS).rows[0]
    ends = encode(tokenizer, tagged(words), LAST, LABELS).rows[0].word_pieces
    data = PLAIN.model_copy(update={"max_length": whole.length - 1})
    tokenizer.truncation_side = side
    try:
        first = encode(tokenizer, tagged(words), NER, LABELS, data)
        last = encode(tokenizer, tagged(words), LAST, LABELS, data)
    finally:
        tokenizer.truncation_side = "right"
    assert first.rows[0].length == whole.length - 1
    if side == "right":
        assert first.rows[0].word_pieces == whole.word_pieces  # the last word still has its first piece
        assert last.rows[0].word_pieces == [*ends[:3], -1]
        lost, kept = last, first
    else:
        assert first.rows[0].word_pieces == [-1, *(p - 1 for p in whole.word_pieces[1:])]
        lost, kept = first, last
    assert "train: 1 of 1 inputs truncated" in lost.report[0]
    assert "1 of 4 words lost" in lost.report[0]
    if side == "right":
        assert "0 of 4 words lost" in kept.report[0]


def test_a_tag_that_training_lacks_stays_in_the_reference(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    example = Example(row=0, words=("in", "Berlin"), reference=("O", "B-NEW"))
    row = encode(tokenizers["byte_level"], [example], NER, LABELS).rows[0]
    assert row.reference == ["O", "B-NEW"]
    assert isinstance(row.labels, list)
    assert [row.labels[position] for position in row.word_pieces] == [0, -100]


def test_texts_are_cut_counted_and_never_empty(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    texts = {"": "a", "good": "b", CORPUS[0]: "new"}
    examples = [Example(i, text, reference=label) for i, (text, label) in enumerate(texts.items())]
    data = PLAIN.model_copy(update={"max_length": 6})
    for family, tokenizer in tokenizers.items():
        special = family == "word_piece"
        encoded = encode(tokenizer, examples, CLASSES, ("a", "b"), data, special)
        assert [row.labels for row in encoded.rows] == [0, 1, -100]
        assert [row.reference for row in encoded.rows] == ["a", "b", "new"]
        assert encoded.lengths[2] == 6
        assert encoded.lengths[0] == (2 if special else 1)
        assert "train: 1 of 3 inputs truncated to 6 tokens" in encoded.report
        assert "train: 1 of 3 texts are empty" in encoded.report
    numbers = encode(tokenizers["byte_level"], [Example(0, "x", reference=2.5)], RegressionConfig())
    assert numbers.rows[0].labels == numbers.rows[0].reference == 2.5


def test_more_texts_than_one_call_takes_stay_in_order(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    examples = [Example(i, f"{i} good", reference="a") for i in range(2100)]
    rows = encode(tokenizers["byte_level"], examples, CLASSES, ("a", "b")).rows
    decoded = [tokenizers["byte_level"].decode(row.input_ids) for row in rows]
    assert decoded == [f"{i} good" for i in range(2100)]
    assert [row.index for row in rows] == [row.group for row in rows] == list(range(2100))


def test_what_a_template_says_behind_the_text_is_never_cut(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["byte_level"]
    long = [Example(0, "a good film " * 40, None, (), "x"), Example(1, "great", None, (), "x")]
    data = DataSection(path="unused", max_length=60, text_template="Review: {text}\nGood or bad? {{x}}:")
    encoded = encode(tokenizer, long, CLASSES, ("x", "y"), data)
    cut, whole = (tokenizer.decode(row.input_ids) for row in encoded.rows)
    assert whole == "Review: great\nGood or bad? {x}:"
    assert cut.startswith("Review: a good")
    assert cut.endswith("\nGood or bad? {x}:")
    assert 50 <= encoded.rows[0].length <= 60
    assert encoded.report == ["train: 1 of 2 inputs truncated to 60 tokens"]

    words = CausalLMConfig(label_words={"x": "good", "y": "really terrible"})
    encoded = encode(tokenizer, long, words, ("x", "y"), data, candidates=True)
    for row in encoded.rows:
        assert "\nGood or bad? {x}:" in tokenizer.decode(row.input_ids)
        assert row.length <= 60
    pair = [Example(0, "a good film " * 40, "a bad film " * 40, (), "x")]
    data = DataSection(path="unused", max_length=40, text_pair_column="h", pair_template="{text} A {text_pair} so:")
    task = PairClassificationConfig()
    row = encode(tokenizer, pair, task, ("x", "y"), data).rows[0]
    assert tokenizer.decode(row.input_ids).endswith(" so:")
    assert row.length <= 40
    with pytest.raises(ValueError, match=r"data\.text_template: .*\{text\} only"):
        encode(tokenizer, long, CLASSES, ("x", "y"), DataSection(path="unused", text_template="{text} {text_pair}"))
    short = DataSection(path="unused", max_length=4, text_template="{text} so:")
    with pytest.raises(ValueError, match=r"data.max_length is 4, but data.text_template alone has \d+ tokens"):
        encode(tokenizer, long, CLASSES, ("x", "y"), short)


def test_encoders_read_pairs_as_segments_and_decoders_through_the_template(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    task = PairClassificationConfig()
    data = DataSection(path="unused", text_pair_column="h", max_length=12, pair_template="Q {text} A {text_pair}")
    pair = [Example(0, "a good film " * 5, "terrible", (), "x"), Example(1, "good {film}", "great", (), "x")]
    encoder = tokenizers["word_piece"]
    cut, whole = encode(encoder, pair, task, ("x", "y"), data, special=True).rows
    assert cut.length == 12
    expected = encoder("good {film}", "great")
    assert whole.input_ids == expected["input_ids"]
    assert whole.token_type_ids == expected["token_type_ids"]
    # the longer text gives first: the second segment is all there
    second = [i for i, segment in zip(cut.input_ids, cut.token_type_ids or [], strict=True) if segment == 1]
    assert second == encoder("terrible", add_special_tokens=False)["input_ids"] + [encoder.sep_token_id]

    decoder = tokenizers["byte_level"]
    row = encode(decoder, pair[1:], task, ("x", "y"), data.model_copy(update={"max_length": 50})).rows[0]
    assert decoder.decode(row.input_ids) == "Q good {film} A great"
    assert row.token_type_ids is None
    forced = encode(encoder, pair[1:], task, ("x", "y"), data, special=True, is_encoder=False).rows[0]
    assert forced.input_ids == encoder("Q good {film} A great")["input_ids"]
    assert forced.token_type_ids is None
    with pytest.raises(ValueError, match=r"data\.pair_template: .*\{text\} and \{text_pair\} only"):
        encode(decoder, pair, task, ("x", "y"), data.model_copy(update={"pair_template": "{premise}"}))


def causal(words: dict[str, str] | None = None) -> TaskConfig:
    return CausalLMConfig(label_words=words)


@pytest.mark.parametrize("family", ["byte_level", "byte_level_trimmed", "sentence_piece"])
def test_a_target_continues_the_prompt_after_a_space(
    tokenizers: dict[str, PreTrainedTokenizerBase], family: str
) -> None:
    tokenizer = tokenizers[family]
    example = Example(0, "a good film is", reference="great ending")
    row = encode(tokenizer, [example], causal()).rows[0]
    running = tokenizer("a good film is great ending", add_special_tokens=False)["input_ids"]
    assert row.input_ids == [*running, tokenizer.eos_token_id]
    prompt = tokenizer("a good film is", add_special_tokens=False)["input_ids"]
    assert row.labels == [-100] * len(prompt) + row.input_ids[len(prompt) :]
    assert row.reference == "great ending"


def test_a_prompt_does_not_end_where_the_tokenizer_ends_texts() -> None:
    tokenizer = byte_level(trim_offsets=False, add_prefix_space=False)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", eos)]
    )
    row = encode(tokenizer, [Example(0, "good", reference="film")], causal(), special=True).rows[0]
    assert row.input_ids[0] == row.input_ids[-1] == eos
    assert row.input_ids.count(eos) == 2


def test_the_prompt_is_cut_before_the_target(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["byte_level"]
    example = Example(0, CORPUS[0], reference="good film")
    whole = encode(tokenizer, [example], causal()).rows[0]
    assert isinstance(whole.labels, list)
    target = [label for label in whole.labels if label >= 0]
    for max_length in (len(target) + 3, len(target), 2):
        data = PLAIN.model_copy(update={"max_length": max_length})
        encoded = encode(tokenizer, [example], causal(), data=data)
        row = encoded.rows[0]
        prompt_kept = max(1, max_length - len(target))
        assert row.input_ids[:prompt_kept] == whole.input_ids[:prompt_kept]
        assert row.input_ids[prompt_kept:] == target[: max_length - prompt_kept]
        assert row.labels == [-100] * prompt_kept + row.input_ids[prompt_kept:]
        assert f"train: 1 of 1 inputs truncated to {max_length} tokens" in encoded.report
        target_cut = f"train: 1 of 1 targets truncated to {max_length} tokens" in encoded.report
        assert target_cut == (max_length <= len(target))


def test_each_label_becomes_a_candidate_row(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["sentence_piece"]
    task = causal({"pos": "great", "neg": "terrible film"})
    golds = {"good": "neg", "": "unheard", "a": "pos"}
    examples = [Example(i, text, reference=gold) for i, (text, gold) in enumerate(golds.items())]
    rows = encode(tokenizer, examples, task, ("neg", "pos"), candidates=True).rows
    assert [(row.group, row.candidate) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row.index for row in rows] == list(range(6))
    assert [row.reference for row in rows] == ["neg", "neg", "unheard", "unheard", "pos", "pos"]
    for row in rows:
        assert isinstance(row.labels, list)
        scored = [label for label in row.labels if label >= 0]
        assert scored[-1] == tokenizer.eos_token_id
        assert str(tokenizer.decode(scored[:-1])).strip() == ("terrible film", "great")[row.candidate]
        assert row.labels[0] == -100
    training = encode(tokenizer, examples, task, ("neg", "pos")).rows
    assert [row.input_ids for row in training] == [
        rows[0].input_ids,
        rows[2].input_ids[:1],
        rows[5].input_ids,
    ]
    assert training[1].labels == [-100]


def test_what_cannot_be_encoded_is_said(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    example = [Example(0, "x", reference="a")]
    with pytest.raises(ValueError, match=r"causal_lm needs an end-of-sequence token"):
        encode(tokenizers["word_piece"], example, causal())
    free = [encode(tokenizers["byte_level"], example, causal(), candidates=scoring).rows for scoring in (False, True)]
    assert free[0] == free[1]  # without label words there are no candidates to score
    short = PLAIN.model_copy(update={"max_length": 2})
    with pytest.raises(ValueError, match=r"data\.max_length is 2, .* adds 2 special tokens.*at least 3"):
        encode(tokenizers["word_piece"], example, CLASSES, ("a", "b"), short, special=True)


def test_slow_tokenizers_are_refused_by_name() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match=r"ByT5Tokenizer.* slow tokenizer"):
        encode(ByT5Tokenizer(), [Example(0, "x", reference="a")], CLASSES, ("a", "b"))


SHARED = Path(os.environ.get("SKTUNE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    if name == "bert":
        try:
            return AutoTokenizer.from_pretrained(resolve("embedded:minilm"))
        except ValueError as not_fetched:
            pytest.skip(str(not_fetched))
    if name == "llama":
        return AutoTokenizer.from_pretrained(SHARED / "models" / "stories260K")
    (folder / "tokenizer.model").write_bytes((SHARED / "tokenizers" / "mistral_v1.model").read_bytes())
    return LlamaTokenizer.from_pretrained(folder)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data: set SKTUNE_TEST_DATA to its folder")
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
@pytest.mark.parametrize(("folder", "file"), [("wnut17", "dev.conll"), ("ncbi_disease", "devel.tsv")])
def test_no_word_of_real_data_is_lost(name: str, folder: str, file: str, tmp_path: Path) -> None:
    tokenizer = real_tokenizer(name, tmp_path)
    data = DataSection(path=str(SHARED / folder), train=file, validation=None, max_length=1000)
    splits = load_splits(data, build_task(NER))
    encoded = encode(tokenizer, splits.train, NER, splits.labels, data, special=name == "bert")
    lost = {
        word
        for example, row in zip(splits.train, encoded.rows, strict=True)
        for word, position in zip(example.words, row.word_pieces, strict=True)
        if position < 0
    }
    # BERT's normalizer removes a variation selector that stands alone
    assert lost <= ({"\ufe0f"} if name == "bert" else set())
