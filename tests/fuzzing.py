"""Inputs that nobody has thought of: recipes, overrides, data files, adapters and records, whole and damaged.

A case is written into a folder and read as the commands read it. What may come of it is a result or a `UserError` whose
message is short; everything else is a defect. `test_fuzz.py` tries some, `benchmarks/fuzz.py` many.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

from sktune.comparison.results import load_state
from sktune.data import load_splits
from sktune.data.questions import FORMATS, read_questions
from sktune.errors import UserError
from sktune.methods import METHODS
from sktune.model.adapter import read_adapter, read_recipe
from sktune.recipe import LoadedRecipe, load_recipe, load_recipe_document
from sktune.recipe.deepspeed_file import KEYS, ZERO_KEYS, read_deepspeed_file
from sktune.recipe.keys import SECTIONS, keys_of
from sktune.sections import DataSection
from sktune.tasks import TASKS
from sktune.tasks.task import build_task
from sktune.tracking.record import Record

datasets.disable_progress_bars()
LONGEST_MESSAGE = 40_000
"""Characters; a recipe with two hundred mistakes has as many, of a few lines each."""


class Case(NamedTuple):
    """Files by name, and what reads them."""

    kind: str
    files: dict[str, bytes]
    read: Callable[[Path], object]


def outcome(case: Case, folder: Path) -> str:
    """`fine` or `refused`; the folder is empty before and after.

    Raises:
        AssertionError: where something was written, or a message is endless.
        Exception: whatever else reading raises: a defect.
    """
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = sorted(folder.rglob("*"))
    message = None
    try:
        case.read(folder)
    except UserError as error:
        message = str(error)
    finally:
        after = sorted(folder.rglob("*"))
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert before == after, "something was written"
    assert message is None or 0 < len(message) < LONGEST_MESSAGE
    return "fine" if message is None else "refused"


# -- values -----------------------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "a", "1e5", "0o17", "0x1F", "007", "-0", "~", "null", "yes", "NaN", ".inf", "1_000", "2024-01-01", "${",
    "${}", "${A-B}", "${HOME}", "${NOBODY_HAS_SET_IT}", "$${x}", "{text}", "{", "{text} {answer}", "{0}", "%s",
    "é\u0301", "\u2028", "\ud800", "\x00", "\x1b[2J", "\u200b", "😀", "a\nb", "a: b # c", "- x", "*a", "&a b",
    "!!int x", "|", "a" * 5000, "../../x", "/dev/null", "nan", "http://me:pw@host", "B-PER", "O", "\ufeff", "embedded:",
    "embedded:llama", "zero3", "x.json", "auto",
)  # fmt: skip
NUMBERS = (0, -0.0, 1, -1, 2, 7, 2**31, 2**63, -(2**70), 10**30, 1e308, 1e-320, 0.5, float("inf"), float("nan"))
scalars = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(TEXTS), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with parts cut out, doubled, turned round or replaced; or as they were."""
    for _ in range(max(0, draw(st.integers(-6, 3)))):
        start = draw(st.integers(0, max(len(content), 1)))
        stop = start + draw(st.integers(0, 40))
        part = content[start:stop]
        middle = draw(
            st.sampled_from(
                [
                    b"", part * 2, part[::-1], part.upper(), b"\x00", b"\xff\xfe", b'"', b"\t", b"\r", b"{", b"[" * 50,
                    b": ", b"&a ", b"*a", b"!!python/object:os.system ", b"\xef\xbb\xbf", b"\n\n", b"9" * 60,
                    b"\\ud83d", b"%", b",",
                ]
            ) | st.binary(max_size=8)
        )  # fmt: skip
        content = content[:start] + middle + content[stop:]
    return content


# -- recipes ----------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "model": {"name_or_path": "embedded:llama"},
    "method": {"name": "sk_prefix", "text": "Find the names."},
    "task": {"name": "token_classification"},
    "data": {"path": "embedded:newswire"},
    "output": {"dir": "runs/x"},
}
OF_TASK: dict[str, dict[str, Any]] = {
    "pair_classification": {"text_pair_column": "second"},
    "regression": {"label_column": "number"},
    "causal_lm": {"target_column": "label"},
}
PLAUSIBLE: tuple[Any, ...] = (True, False, None, 1, 2, 8, 0, 0.1, 1e-3, "text", "label", "auto", "zero2", "float32")
FIELDS = [(section, key) for section in SECTIONS for key in keys_of(section)]


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe's mapping of which a few fields are anything."""
    recipe: dict[str, Any] = {name: dict(section) for name, section in BASE.items()}
    method, task = draw(st.sampled_from(list(METHODS))), draw(st.sampled_from(list(TASKS)))
    recipe["method"] = {
        "name": method,
        **({"text": "Is it good?"} if "text" in METHODS.config(method).model_fields else {}),
    }
    recipe["task"]["name"] = task
    recipe["data"] |= OF_TASK.get(task, {})
    for _ in range(max(0, draw(st.integers(-2, 3)))):
        section, key = draw(st.sampled_from(FIELDS))
        if isinstance(recipe.setdefault(section, {}), dict):
            recipe[section][key] = draw(st.sampled_from(PLAUSIBLE) | values)
    if draw(st.integers(0, 9)) == 0:
        recipe[draw(st.sampled_from([*SECTIONS, "extends", "recipe_format", "other", ""]))] = draw(values)
    return recipe


def _as_yaml(recipe: Any) -> bytes:
    return yaml.dump(recipe, allow_unicode=True).encode("utf-8", "surrogatepass")


def _read_recipe(overrides: tuple[str, ...]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        loaded = load_recipe_document(folder / "recipe.yaml", overrides, comparing=True)
        _comes_back(loaded)
        return loaded

    return read


def _comes_back(loaded: LoadedRecipe) -> None:
    """What is written of a recipe means the same when it is read again."""
    file = loaded.source.with_name("again.yaml")
    try:
        file.write_text(loaded.whole_text(), encoding="utf-8")
        again = load_recipe(file)
    finally:
        file.unlink(missing_ok=True)
    # What hides a password changes an address, and a section that says nothing of a run is not written.
    assert again.model_copy(update={"compare": None, "tracking": None}) == loaded.recipe.model_copy(
        update={"compare": None, "tracking": None}
    )


@st.composite
def recipe_cases(draw: st.DrawFn) -> Case:
    text = draw(damaged(_as_yaml(draw(recipes()))))
    files = {"recipe.yaml": text}
    if draw(st.integers(0, 9)) == 0:
        files = {"recipe.yaml": b"extends: base.yaml\n" + text, "base.yaml": draw(damaged(_as_yaml(draw(recipes()))))}
    return Case("recipe", files, _read_recipe(()))


BROKEN = ("{a: &x [*x]}", "[", "{", "&a *a", "'", "!!x y", "? a", "[[[[" * 40)


@st.composite
def override_cases(draw: st.DrawFn) -> Case:
    overrides = []
    for _ in range(draw(st.integers(1, 3))):
        section, key = draw(st.sampled_from(FIELDS))
        name = f"{section}.{key}"
        name = draw(st.sampled_from([name] * 9 + [section, f"{name}.x", key, f"--{name}"]))
        value = draw(st.sampled_from(PLAUSIBLE * 3) | values | st.sampled_from(BROKEN))
        given = value if isinstance(value, str) else json.dumps(value, default=str)
        overrides.append(draw(st.sampled_from([f"{name}={given}"] * 9 + [f"{name} = {given}", name, f"={given}"])))
    return Case("override", {"recipe.yaml": _as_yaml(BASE)}, _read_recipe(tuple(overrides)))


# -- data -------------------------------------------------------------------------------------------------------

COLUMNS = ("text", "label", "tokens", "tags", "second", "number", "a.b", "", "text")
WORDS = ("good", "film", "B-PER", "I-PER", "O", "S-LOC", "B-", "I", "1", "0", "-1", "nan", "pos", "neg", "a|b", "NOUN")
cells = st.one_of(
    st.sampled_from(WORDS), scalars, st.lists(st.sampled_from(WORDS) | scalars, max_size=4), st.dictionaries(
        st.sampled_from(("a", "b", "en")), scalars, max_size=2)
)  # fmt: skip
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".conll", ".txt", ".jsonl.gz", ".csv.gz", ".parquet", "")


@st.composite
def data_cases(draw: st.DrawFn) -> Case:
    ending = draw(st.sampled_from(ENDINGS))
    task = "token_classification" if ending in (".conll", ".txt", "") else draw(st.sampled_from(list(TASKS)))
    splits = ["train", "test"][: draw(st.integers(1, 2))]
    files = {f"{split}{ending}": draw(damaged(_table_bytes(draw, ending.removesuffix(".gz")))) for split in splits}
    if ending.endswith(".gz"):
        files = {name: draw(damaged(gzip.compress(content))) for name, content in files.items()}
    fields = {
        "path": ".",
        "train": draw(st.sampled_from((f"train{ending}", f"tr*{ending}", [f"train{ending}", f"t*{ending}"]))),
        "column_names": draw(st.sampled_from((None,) * 6 + (("text", "label"), ("text", "text")))),
        "validation": None,
        "test": f"test{ending}" if "test" in splits else None,
        "encoding": draw(st.sampled_from((None,) * 9 + ("utf-16", "latin-1", "rot13", "nothing"))),
        "conll_tag_column": draw(st.sampled_from((-1, -1, -1, -1, 1, 0, 9))),
        **OF_TASK.get(task, {}),
    }

    def read(folder: Path) -> object:
        section = TASKS.read({"name": task})
        return load_splits(DataSection(**{**fields, "path": str(folder)}), build_task(section))

    return Case("data", files, read)


SOUND: dict[str, Callable[[st.DrawFn], Any]] = {
    "text": lambda draw: draw(st.sampled_from(WORDS)),
    "second": lambda draw: draw(st.text(max_size=5)),
    "label": lambda draw: draw(st.sampled_from(("pos", "neg"))),
    "number": lambda draw: draw(st.integers(0, 9)),
    "tokens": lambda draw: ["good", "film"],
    "tags": lambda draw: draw(st.sampled_from((["O", "B-PER"], ["B-PER", "I-PER"]))),
    "a.b": lambda draw: {"b": 1},
    "": lambda draw: "",
}


def _table_bytes(draw: st.DrawFn, ending: str) -> bytes:
    columns = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5))
    if draw(st.booleans()):
        columns = ["text", "label", "tokens", "tags", "second", "number"]
    if sound := draw(st.booleans()):
        rows = [[SOUND[column](draw) for column in columns] for _ in range(draw(st.integers(2, 5)))]
    else:
        rows = draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=5))
    if ending in (".jsonl", ".json"):
        return b"\n".join(json.dumps(dict(zip(columns, row, strict=True))).encode() for row in rows)
    texts = [[" ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in row] for row in rows]
    if ending == ".parquet":
        return _parquet(columns, texts)
    if ending == ".csv":
        file = io.StringIO()
        csv.writer(file).writerows([columns, *texts])
        return file.getvalue().encode("utf-8", "surrogatepass")
    separator = "\t" if ending == ".tsv" else " "
    lines = [separator.join(columns)] if ending == ".tsv" else []
    if ending != ".tsv":
        tags = ("O", "B-PER", "I-PER", "S-LOC") if sound else WORDS
        lines += [f"{draw(st.sampled_from(WORDS))}{separator}{draw(st.sampled_from(tags))}" for _ in range(4)]
    if ending == ".tsv" or not sound:
        lines += [separator.join(row) for row in texts]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _parquet(columns: list[str], rows: list[list[str]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(columns))
    held = {name: [row[columns.index(name)].encode("utf-8", "replace").decode() for row in rows] for name in names}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(held), file)
    return file.getvalue()


@st.composite
def question_cases(draw: st.DrawFn) -> Case:
    """What `predict` reads: some records may be wrong, which is for it to say."""
    ending, words = draw(st.sampled_from(ENDINGS)), draw(st.booleans())
    content = draw(damaged(_table_bytes(draw, ending.removesuffix(".gz"))))
    content = gzip.compress(content) if ending.endswith(".gz") else content
    format = draw(st.sampled_from(("auto",) * 4 + FORMATS))
    fields = {"path": ".", "text_pair_column": draw(st.sampled_from((None, None, "second", "a.b")))}

    def read(folder: Path) -> object:
        found = read_questions(folder / f"x{ending}", format, DataSection(**fields), "a task", words=words)
        return [str(one)[:1] for one in found]

    return Case("question", {f"x{ending}": content}, read)


# -- what a run has written -------------------------------------------------------------------------------------

WEIGHTS = save({"head.classifier.weight": torch.zeros(2, 4), "head.classifier.bias": torch.zeros(2)})
CARD = {"sktune_version": "0.1.0", "labels": ["neg", "pos"], "metrics": {}}
CELL = {"name": "x", "label": "x", "method": "lora", "grid": {}, "seed": 1, "folder": "cells/x", "curves": "cells/x/m"}
COMPARISON = {
    **{"name": "c", "recipe": "r", "overrides": [], "task": "t", "metric": "m", "select": "none"},
    "cells": [CELL],
}
RECORD = {
    **{"local_id": "local-1", "experiment_name": "e", "run_name": "r", "tracking_uri": "sqlite:///x.db"},
    "artifacts": [],
}
DEEPSPEED = {"zero_optimization": {"stage": 3, "overlap_comm": True}, "gradient_clipping": "auto"}


@st.composite
def mappings(draw: st.DrawFn, base: dict[str, Any], keys: tuple[str, ...] = ()) -> bytes:
    """A JSON object of which a few entries are anything."""
    content: Any = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(0, 2))):
        content[draw(st.sampled_from((*base, *keys, "other")))] = draw(values)
    return draw(damaged(json.dumps(content).encode()))


@st.composite
def adapter_cases(draw: st.DrawFn) -> Case:
    files = {
        "recipe.yaml": draw(damaged(_as_yaml({**draw(recipes()), "recipe_format": 1}))),
        "adapter.json": draw(mappings(CARD)),
        "adapter.safetensors": draw(damaged(WEIGHTS)),
    }
    return Case("adapter", files, lambda folder: (read_recipe(folder), read_adapter(folder)))


@st.composite
def record_cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(("comparison", "record", "deepspeed")))
    if kind == "comparison":
        return Case(kind, {"comparison.json": draw(mappings(COMPARISON))}, load_state)
    if kind == "record":
        return Case(kind, {"tracking/run.json": draw(mappings(RECORD))}, Record.load)
    content = draw(mappings(DEEPSPEED, (*sorted(KEYS), *sorted(ZERO_KEYS))))
    return Case(kind, {"own.json": content}, lambda folder: read_deepspeed_file(folder / "own.json"))


cases = st.one_of(
    recipe_cases(), override_cases(), data_cases(), data_cases(), question_cases(), adapter_cases(), record_cases()
)
