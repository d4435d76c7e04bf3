"""Files as they are found: encodings, compression, long cells, stray quotes, half characters, nested columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from test_data_load import load

from sktune.errors import UserError

ROWS = [("good film", "pos"), ("bad café", "neg"), ("nice", "pos"), ("awful", "neg")]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)


def texts(folder: Path, **fields: Any) -> list[str]:
    return [example.text for example in load(folder, **fields).train]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_marked_or_packed_file_reads_as_the_plain_one(tmp_path: Path, encoding: str, packed: bool) -> None:
    raw = CSV.encode(encoding)
    (tmp_path / ("train.csv.gz" if packed else "train.csv")).write_bytes(gzip.compress(raw) if packed else raw)
    assert texts(tmp_path) == [text for text, _ in ROWS]


def test_an_encoding_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(CSV.encode("cp1252"))
    assert texts(tmp_path, encoding="cp1252")[1] == "bad café"
    with pytest.raises(ValueError, match=r"train\.csv:3: byte 0xe9 is not UTF-8; set data\.encoding"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"data\.encoding: 'latin-9000' is no encoding that Python knows"):
        load(tmp_path, encoding="latin-9000")


def test_utf16_without_a_mark_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(CSV.replace("é", "e").encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"NUL bytes, as UTF-16 without a byte order mark does; set data\.encoding"):
        load(tmp_path)
    assert texts(tmp_path, encoding="utf-16-le")[0] == "good film"


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-12])
    with pytest.raises(ValueError, match="is no whole gzip file"):
        load(tmp_path)


@pytest.mark.parametrize("encoding", [{"format": "hub"}, {"train": "train.parquet"}])
def test_an_encoding_of_what_is_no_text_file_is_refused(tmp_path: Path, encoding: dict[str, str]) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.encoding: .* would do nothing"):
        load(tmp_path, encoding="latin-1", **encoding)


def test_cells_may_be_as_long_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "word " * 40_000 + ",a\nshort,b\n")
    assert [len(text) for text in texts(tmp_path)] == [200_000, 5]


def test_a_stray_quote_that_swallows_rows_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,label\na,x\n"The start,x\nmiddle,y\nend of it" she said,y\nb,x\n')
    splits = load(tmp_path)
    assert len(splits.train) == 3
    assert any("1 of 3 rows have a cell over several lines (the first: row 1)" in line for line in splits.report)


def test_half_a_character_becomes_the_replacement_character(tmp_path: Path) -> None:
    rows = ['{"text": "so funny \\ud83d", "label": "x\\udc00"}', '{"text": "whole \\ud83d\\ude00", "label": "y"}']
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    splits = load(tmp_path)
    assert [example.text for example in splits.train] == ["so funny \ufffd", "whole \U0001f600"]
    assert splits.labels == ("x\ufffd", "y")
    assert any("1 rows with half a character" in line for line in splits.report)


def test_a_field_of_a_nested_column_can_be_named(tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"text {i}", "de": "x"}, "meta": {"label": "ab"[i % 2]}} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = {"text_column": "translation.en", "label_column": "meta.label"}
    assert texts(tmp_path, **named) == [f"text {i}" for i in range(4)]
    with pytest.raises(ValueError, match=r"row 0: data\.text_column: 'translation\.fr' needs an object with 'fr'"):
        load(tmp_path, **{**named, "text_column": "translation.fr"})
    with pytest.raises(ValueError, match=r"data\.text_column: no column 'translations\.en' .*Did you mean"):
        load(tmp_path, **{**named, "text_column": "translations.en"})


def test_several_files_are_one_split(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"part-{number:02}.csv").write_text(f"text,label\nfirst of {number},a\nsecond of {number},b\n")
    (tmp_path / "other.csv").write_text("label,text\na,other\n")
    by_pattern = load(tmp_path, train="part-*.csv")
    assert [(example.row, example.text) for example in by_pattern.train] == [
        *((0, "first of 1"), (1, "second of 1"), (2, "first of 2"), (3, "second of 2")),
        *((4, "first of 10"), (5, "second of 10")),
    ]
    counted = f"begin at row 0 of {tmp_path}/part-01.csv, 2 of {tmp_path}/part-02.csv, 4 of {tmp_path}/part-10.csv"
    assert any(counted in line for line in by_pattern.report)
    listed = load(tmp_path, train=("other.csv", "part-0*.csv", "part-01"))
    assert [example.text for example in listed.train][:2] == ["other", "first of 1"]
    assert len(listed.train) == 5  # a file that is named twice is read once
    with pytest.raises(UserError, match=r"data\.train: no file fits 'none-\*'"):
        load(tmp_path, train="none-*")
    (tmp_path / "part-11.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"no column 'label' in .*part-11\.csv"):
        load(tmp_path, train="part-*.csv")
    (tmp_path / "[odd].csv").write_text("text,label\nx,a\ny,b\n")
    assert len(load(tmp_path, train="[odd].csv").train) == 2


def test_a_table_without_a_line_of_names_has_those_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('a,"good, film"\nb,bad film\n')
    splits = load(tmp_path, column_names=("label", "text"))
    assert [(example.text, example.reference) for example in splits.train] == [("good, film", "a"), ("bad film", "b")]
    with pytest.raises(UserError, match=r"data\.column_names names 1 columns, line 1 has 2 cells"):
        load(tmp_path, column_names=("text",))
    (tmp_path / "train.jsonl").write_text('{"text": "x", "label": "a"}\n')
    with pytest.raises(UserError, match=r"data\.column_names: .* is no table of a text file"):
        load(tmp_path, train="train.jsonl", column_names=("text", "label"))
