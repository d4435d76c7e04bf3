"""CoNLL column files and tagging schemes, read as a recipe reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sktune.data import RawSplits, load_splits
from sktune.sections import DataSection
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

NER = TokenClassificationConfig()


def load(folder: Path, content: str | bytes, file: str = "train.conll", **fields: object) -> RawSplits:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / file).write_bytes(raw)
    return load_splits(DataSection(path=str(folder), validation=None, **fields), build_task(NER))


def tags(splits: RawSplits) -> list[list[object]]:
    return [[*example.reference] for example in splits.train if isinstance(example.reference, tuple)]


def test_columns_are_chosen_by_index_and_docstart_and_blank_lines_end_sentences(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n \t \nRome NNP B-NP B-LOC\n"
    splits = load(tmp_path, text)
    assert [example.words for example in splits.train] == [("EU", "rejects"), ("Rome",)]
    assert tags(splits) == [["B-ORG", "O"], ["B-LOC"]]
    assert splits.labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
    chunks = load(tmp_path, text, conll_word_column=1, conll_tag_column=-2)
    assert chunks.train[0].words == ("NNP", "VBZ")
    assert tags(chunks)[0] == ["B-NP", "B-VP"]


def test_tab_separated_words_keep_odd_white_space(tmp_path: Path) -> None:
    words = ["10\u00a0000", "New York", "a\u2028b", "\u00a0"]
    text = "\ufeff" + "".join(f"{word}\tB-X\n" for word in words)
    assert load(tmp_path, text).train[0].words == tuple(words)


def test_space_separated_words_keep_no_break_spaces_and_crlf_ends_lines(tmp_path: Path) -> None:
    splits = load(tmp_path, "10\u00a0000   B-N\r\nx O\r\n\r\ny O\r\n")
    assert [example.words for example in splits.train] == [("10\u00a0000", "x"), ("y",)]


def test_comments_are_lines_with_another_column_count(tmp_path: Path) -> None:
    splits = load(tmp_path, "# sent_id = 1 of 2\n#\n# O\nhash B-X\n# text = hash here\n# I-X\n#tag O\n")
    assert splits.train[0].words == ("#", "hash", "#", "#tag")
    assert tags(splits) == [["O", "B-X", "I-X", "O"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\tX\tO\n", r"train\.conll:2: 3 columns where the file's first line has 2 \(tab-separated\)"),
        ("a O\n\n#tag too many O\n", r"train\.conll:3: 4 columns .* 2 \(space-separated\)"),
        ("a O\nb NNP\n", r"train\.conll:2: 'NNP' is no tag .* data\.conll_tag_column"),
        (b"caf\xe9 O\n", r"train\.conll:1: byte 0xe9 is not UTF-8.*iconv"),
        (b"ok O\nok O\ncaf\xe9 O\n", r"train\.conll:3: "),
        ("word\nother\n", r"column 0 of 1"),
        ("\n \n-DOCSTART- O\n", r"train\.conll holds no sentences"),
        ("", r"train\.conll holds no sentences"),
        ("a O\nb O\n", r"the label 'O' only"),
    ],
)
def test_errors_name_the_line_and_the_cure(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.conll_tag_column is 3, but the file has 2 columns \(0 to 1\)"):
        load(tmp_path, "a B-X\n", conll_tag_column=3)


@pytest.mark.parametrize(
    ("written", "iob2", "report"),
    [
        ("I-A I-A B-A O I-B", "B-A I-A B-A O B-B", "IOB1 tags converted to IOB2 (2 tags)"),
        ("B-A E-A S-A O B-B I-B E-B", "B-A I-A B-A O B-B I-B I-B", "BIOES tags converted to IOB2 (3 tags)"),
        ("B-A L-A U-A O", "B-A I-A B-A O", "BILOU tags converted to IOB2 (2 tags)"),
        ("S-A I-A O B-A I-B", "B-A B-A O B-A B-B", "BIOES"),
        ("B-A O B-B I-A", "B-A O B-B B-A", "1 I- tags that continue no entity of their type read as B-"),
        ("B-A I-A B-A O B-B I-B", "B-A I-A B-A O B-B I-B", None),
        ("B-a-b I-a-b", "B-a-b I-a-b", None),
    ],
)
def test_every_scheme_becomes_iob2(tmp_path: Path, written: str, iob2: str, report: str | None) -> None:
    splits = load(tmp_path, "".join(f"w {tag}\n" for tag in written.split()))
    assert tags(splits) == [iob2.split()]
    conversions = [line for line in splits.report if "tags" in line]
    assert (not conversions) if report is None else report in conversions[0]


def test_entities_do_not_continue_across_sentences(tmp_path: Path) -> None:
    assert tags(load(tmp_path, "a B-X\n\nb I-X\n")) == [["B-X"], ["B-X"]]


@pytest.mark.parametrize("file", ["train.conll", "train.iob", "train.bio", "train.txt", "train.tsv"])
def test_usual_endings_are_conll_for_token_classification(tmp_path: Path, file: str) -> None:
    assert load(tmp_path, "a\tB-X\n", file).train[0].words == ("a",)


def test_a_tsv_whose_header_names_the_columns_is_a_table(tmp_path: Path) -> None:
    splits = load(tmp_path, "id\ttokens\ttags\n1\tin New York\tO B-LOC I-LOC\n", "train.tsv")
    assert splits.train[0].words == ("in", "New", "York")
    assert tags(splits) == [["O", "B-LOC", "I-LOC"]]


def test_a_tsv_of_words_that_look_like_a_bad_header_is_still_conll(tmp_path: Path) -> None:
    assert load(tmp_path, "O\tO\nb\tB-X\n", "train.tsv").train[0].words == ("O", "b")


def test_labels_given_by_the_recipe_must_hold_all_training_tags(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("a B-X\n\nb B-Y\n")
    data = DataSection(path=str(tmp_path), validation=None)
    with pytest.raises(ValueError, match=r"row 1: label 'B-Y' is not in task\.labels"):
        load_splits(data, build_task(NER.model_copy(update={"labels": ("O", "B-X", "I-X")})))
    order = ("B-Y", "B-X", "O")
    assert load_splits(data, build_task(NER.model_copy(update={"labels": order}))).labels == order
