"""Raw splits from files and hub layouts: formats, labels, missing things, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from sktune.data import Example, RawSplits, load_splits
from sktune.sections import DataSection
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.config import TaskConfig
from sktune.tasks.pair_classification.config import PairClassificationConfig
from sktune.tasks.regression.config import RegressionConfig
from sktune.tasks.sequence_classification.config import SequenceClassificationConfig
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

CLASSES = SequenceClassificationConfig()
NER = TokenClassificationConfig()
REGRESSION = RegressionConfig()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def load(folder: Path, task: TaskConfig = CLASSES, **fields: Any) -> RawSplits:
    fields.setdefault("validation", None)
    return load_splits(DataSection(path=str(folder), **fields), build_task(task))


def references(examples: list[Example] | None) -> list[Any]:
    assert examples is not None
    return [example.reference for example in examples]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_table_format_gives_the_same_examples(tmp_path: Path, ending: str) -> None:
    rows = [
        {"text": "a, good one", "label": "yes"},
        {"text": "NA", "label": "no"},
        {"text": "007", "label": "no"},
    ]
    table = datasets.Dataset.from_list(rows)
    path = tmp_path / f"train.{ending}"
    if ending in ("jsonl", "json"):
        write_lines(path, rows)
    elif ending == "parquet":
        table.to_parquet(str(path))
    else:
        table.to_csv(str(path), index=False, sep="\t" if ending == "tsv" else ",")
    for name in ("train", path.name, str(path)):
        splits = load(tmp_path, train=name)
        assert [example.text for example in splits.train] == ["a, good one", "NA", "007"]
        assert references(splits.train) == ["yes", "no", "no"]
        assert splits.labels == ("no", "yes")
        assert splits.validation is None


def test_json_text_is_never_reinterpreted(tmp_path: Path) -> None:
    rows = [{"text": "2020-01-01", "label": "2"}, {"text": 5, "label": 1}]
    (tmp_path / "train.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    splits = load(tmp_path)
    assert [example.text for example in splits.train] == ["2020-01-01", "5"]
    assert splits.labels == ("1", "2")


def test_tsv_has_no_quoting_and_csv_has(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('text\tlabel\n"so called\tx\n5" disk\ty\n')
    (tmp_path / "train.csv").write_text('\ufefftext,label\n"two\nlines, ""q""",x\nplain,y\n')
    assert [e.text for e in load(tmp_path, train="train.tsv").train] == ['"so called', '5" disk']
    assert [e.text for e in load(tmp_path, train="train.csv").train] == ['two\nlines, "q"', "plain"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "c"], ("a", "b", "c")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9"], ("9", "10")),
        ([True, False], ("False", "True")),
    ],
)
def test_inferred_label_sets(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    write_lines(tmp_path / "train.jsonl", labelled(*labels))
    splits = load(tmp_path)
    assert splits.labels == names
    assert references(splits.train) == [str(label) for label in labels]


def test_class_labels_keep_their_names_and_order_and_hide_with_minus_one(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "maybe", "no"])}
    )
    for file, labels in (("train", [2, 0, -1]), ("validation", [1]), ("test", [-1, -1])):
        table = datasets.Dataset.from_dict({"text": ["t"] * len(labels), "label": labels}, features=features)
        table.to_parquet(str(tmp_path / f"{file}.parquet"))
    splits = load(tmp_path, validation="validation", test="test")
    assert splits.labels == ("yes", "maybe", "no")
    assert references(splits.train) == ["no", "yes"]
    assert references(splits.validation) == ["maybe"]
    assert splits.test is None
    report = "\n".join(splits.report)
    assert "train: 1 rows without a label dropped" in report
    assert "test: none of the 2 rows has a label; the split is left out" in report
    assert "train: no example of maybe" in report
    # the same folder through the hub's reader
    hub = load(tmp_path, format="hub", validation="validation")
    assert (hub.labels, hub.train, hub.validation) == (splits.labels, splits.train, splits.validation)
    with pytest.raises(ValueError, match=r"cannot read split 'dev' of .*Check data\.path"):
        load(tmp_path, format="hub", validation="dev")


def test_integers_index_the_labels_of_the_recipe(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled(1, 0))
    named = CLASSES.model_copy(update={"labels": ("negative", "positive")})
    assert references(load(tmp_path, named).train) == ["positive", "negative"]
    digits = CLASSES.model_copy(update={"labels": ("1", "0")})
    assert references(load(tmp_path, digits).train) == ["1", "0"]
    write_lines(tmp_path / "train.jsonl", labelled(1, 2))
    with pytest.raises(ValueError, match=r"row 1: label 2 is outside the 2 names negative, positive"):
        load(tmp_path, named)


def test_training_labels_outside_the_recipes_are_errors_and_new_ones_elsewhere_are_reported(
    tmp_path: Path,
) -> None:
    write_lines(tmp_path / "train.jsonl", labelled("a", "b", "c"))
    write_lines(tmp_path / "validation.jsonl", labelled("a", "d", "d"))
    with pytest.raises(ValueError, match=r"train\.jsonl, row 2: label 'c' is not in task\.labels \(a, b\)"):
        load(tmp_path, CLASSES.model_copy(update={"labels": ("a", "b")}))
    splits = load(tmp_path, validation="validation")
    assert splits.labels == ("a", "b", "c")
    assert references(splits.validation) == ["a", "d", "d"]
    assert any("always counted as wrong: d (2)" in line for line in splits.report)


def test_limits_take_the_first_examples_after_the_label_set_is_known(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled("a", None, "a", "b"))
    splits = load(tmp_path, max_train_samples=2)
    assert [example.row for example in splits.train] == [0, 2]
    assert splits.labels == ("a", "b")
    assert "train: no example of b" in splits.report
    assert any("2 examples, the first of 3" in line for line in splits.report)


def test_regression_reads_numbers_and_refuses_the_rest(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1.5\nb,\nc,-1\n")
    splits = load(tmp_path, REGRESSION)
    assert references(splits.train) == [1.5, -1.0]
    assert splits.labels is None
    for bad in ("high", "inf"):
        (tmp_path / "train.csv").write_text(f"text,label\na,1.5\nb,{bad}\n")
        with pytest.raises(ValueError, match=rf"train\.csv, row 1: .*not '{bad}'"):
            load(tmp_path, REGRESSION)


def test_pairs_and_their_column(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"p": "a", "h": "", "label": "x"}, {"p": "b", "h": "c", "label": "y"}])
    pairs = PairClassificationConfig()
    splits = load(tmp_path, pairs, text_column="p", text_pair_column="h")
    assert [(e.text, e.text_pair) for e in splits.train] == [("a", ""), ("b", "c")]
    with pytest.raises(ValueError, match=r"data\.text_pair_column: pair_classification reads two texts"):
        load(tmp_path, pairs, text_column="p")


def test_tagged_words_from_lists(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tokens": ["in", "Rome"], "tags": ["O", "I-LOC"]},
        {"tokens": [], "tags": []},
        {"tokens": ["hidden"], "tags": None},
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    splits = load(tmp_path, NER)
    assert references(splits.train) == [("O", "B-LOC")]
    report = "\n".join(splits.report)
    assert "train: 1 rows without words dropped" in report
    assert "train: 1 rows without a label dropped" in report
    assert "IOB1 tags converted" in report
    write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}])
    with pytest.raises(ValueError, match=r"row 0: 2 words but 1 tags"):
        load(tmp_path, NER)


def test_integer_tags_need_names(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER"]
    coded = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": coded})
    row = {"tokens": [["Ada", "Byron", "wrote"]], "tags": [[1, 2, 0]]}
    datasets.Dataset.from_dict(row, features=features).to_parquet(str(tmp_path / "named.parquet"))
    datasets.Dataset.from_dict(row).to_parquet(str(tmp_path / "bare.parquet"))
    assert references(load(tmp_path, NER, train="named").train) == [("B-PER", "I-PER", "O")]
    with pytest.raises(ValueError, match=r"row 0: the tag 1 is a number without a name.*task\.labels"):
        load(tmp_path, NER, train="bare")
    given = NER.model_copy(update={"labels": tuple(names)})
    assert references(load(tmp_path, given, train="bare").train) == [("B-PER", "I-PER", "O")]


def test_causal_targets_and_label_words(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "2+2", "answer": "four", "label": "pos"}])
    free = load(tmp_path, CausalLMConfig(), target_column="answer")
    assert (references(free.train), free.labels) == (["four"], None)
    words = CausalLMConfig(label_words={"pos": "great", "neg": "terrible"})
    assert load(tmp_path, words).labels == ("pos", "neg")
    assert references(load(tmp_path, words).train) == ["pos"]
    with pytest.raises(ValueError, match=r"label 'pos' is not in task\.label_words \(neg\)"):
        load(tmp_path, CausalLMConfig(label_words={"neg": "bad"}))
    with pytest.raises(ValueError, match=r"data\.target_column"):
        load(tmp_path, CausalLMConfig())


def test_an_empty_text_is_an_example_and_a_null_text_is_not(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "", "label": "a"}, {"text": "b", "label": "b"}])
    assert [e.text for e in load(tmp_path).train] == ["", "b"]
    write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": "a"}, {"text": None, "label": "b"}])
    with pytest.raises(ValueError, match=r"row 1: data\.text_column is null"):
        load(tmp_path)


def test_wrong_columns_are_answered_with_those_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"sentence": "a", "labels": "x"}])
    with pytest.raises(ValueError, match=r"data\.text_column: no column 'text' .*Columns: sentence, labels"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"no column 'label' .*Did you mean 'labels'\?"):
        load(tmp_path, text_column="sentence")


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        (
            {"a.jsonl": "", "b.csv": ""},
            {},
            r"data\.train: there is no file 'train' .*Files there: a\.jsonl, b\.csv",
        ),
        ({"train.csv": "", "train.tsv": ""}, {}, r"'train' could be any of train\.csv, train\.tsv"),
        ({"train.jsonl": ""}, {}, r"train\.jsonl holds no rows"),
        ({"train.csv": "text,label\n"}, {}, r"train\.csv holds no rows"),
        ({"train.csv": ""}, {}, r"train\.csv holds no rows"),
        ({"train.csv": "text,label\na,b,c\n"}, {}, r"names 2 columns, line 2 has 3 cells"),
        (
            {"train.tsv": "text\tlabel\na\tx\nb\ty\tz\n"},
            {},
            r"train\.tsv: the first line names 2 columns, line 3 has 3",
        ),
        ({"train.jsonl": '{"text": "a"}\n\n{"text": "b"\n'}, {}, r"train\.jsonl:3: not JSON"),
        ({"train.json": '[{"text": "a"},\n {"text": }]'}, {}, r"train\.json:2: not JSON"),
        ({"train.jsonl": '"a"\n'}, {}, r"row 0: a JSON object with the columns is needed"),
        ({"train.parquet": "no"}, {}, r"train\.parquet: cannot be read as parquet"),
        ({"train.txt": "x\n"}, {}, r"train\.txt: cannot tell the format .*Set data\.format to jsonl, csv"),
        ({"train.conll": "x O\n"}, {"format": "conll"}, r"data\.format: conll holds tagged words"),
        ({"train.csv": "text,text\na,b\n"}, {}, r"a column name occurs twice"),
        ({"train.jsonl": '{"text": "a", "label": "x"}\n'}, {}, r"the label 'x' only"),
        ({"train.jsonl": '{"text": "a", "label": null}\n'}, {}, r"data\.train: no row of .* has a label"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, files: dict[str, str], fields: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **fields)


def test_a_missing_validation_file_says_how_to_go_without(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled("a", "b"))
    with pytest.raises(ValueError, match=r"data\.validation: there is no file 'validation'.* null to go without"):
        load(tmp_path, validation="validation")


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled("a", "b"))
    with pytest.raises(ValueError, match=r"is a file\. Set data\.path to its folder"):
        load(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match="there is no folder"):
        load(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"data\.path: 'csv' is a format"):
        load_splits(DataSection(path="csv"), build_task(CLASSES))
    with pytest.raises(ValueError, match=r"cannot read split 'train' of nobody/nothing .*data\.path"):
        load_splits(DataSection(path="nobody/nothing", name="x"), build_task(CLASSES))


def test_save_to_disk_folders_are_refused_with_a_cure(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(labelled("a", "b"))
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "dict"))
    for name in ("one", "dict"):
        with pytest.raises(ValueError, match=r"save_to_disk.*to_parquet"):
            load(tmp_path / name)


def test_glob_characters_in_a_file_name_are_just_characters(tmp_path: Path) -> None:
    folder = tmp_path / ".sets" / "set [v1] *"
    folder.mkdir(parents=True)
    write_lines(folder / "train.jsonl", labelled("a", "b"))
    assert references(load(folder).train) == ["a", "b"]
