"""`extends:` in recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sktune.recipe import RecipeError, load_recipe, load_recipe_document

BASE = """\
model: {name_or_path: "embedded:llama"}
quantization: {load_in_4bit: true}
method: {name: sk_prefix, text: "Find the names.", rank: 8}
task: {name: token_classification}
data: {path: "embedded:newswire"}
training:
  max_steps: 7
  learning_rate: 0.5
output: {dir: runs/base}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


def test_fields_replace_fields_and_the_rest_is_the_bases(folder: Path) -> None:
    path = write(
        folder / "deep" / "er.yaml", "extends: ../base.yaml\ntraining: {max_steps: 3}\noutput: {dir: runs/x}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.training.max_steps, recipe.training.learning_rate) == (3, 0.5)
    assert recipe.output.dir == "runs/x"
    assert recipe.quantization.bits == 4
    assert recipe.method == load_recipe(folder / "base.yaml").method


def test_methods_to_compare_are_added_and_their_sections_replaced(folder: Path) -> None:
    more = "compare: {seeds: 2, methods: {lora: {rank: 2}, ia3: {}}}\n"
    write(folder / "compared.yaml", "extends: base.yaml\n" + more)
    path = write(folder / "more.yaml", "extends: compared.yaml\ncompare: {methods: {lora: {rank: 4}, full: {}}}\n")
    compare = load_recipe(path).compare
    assert compare.methods == {"lora": {"rank": 4}, "ia3": {}, "full": {}}
    assert compare.seeds == 2
    without = write(folder / "without.yaml", "extends: more.yaml\ncompare: {methods: {ia3: null}}\n")
    assert list(load_recipe(without).compare.methods) == ["lora", "full"]


def test_another_method_replaces_the_section(folder: Path) -> None:
    path = write(folder / "lora.yaml", "extends: base.yaml\nmethod: {name: lora}\n")
    assert load_recipe(path).method.name == "lora"
    same = write(folder / "rank.yaml", "extends: base.yaml\nmethod: {rank: 3}\n")
    assert load_recipe(same).method.rank == 3  # type: ignore[union-attr]


def test_recipes_extend_in_a_chain_and_overrides_come_last(folder: Path) -> None:
    write(folder / "middle.yaml", "extends: base.yaml\ntraining: {max_steps: 3, seed: 1}\n")
    path = write(folder / "top.yaml", "extends: middle.yaml\ntraining: {seed: 2}\n")
    training = load_recipe(path, ["training.learning_rate=0.25"]).training
    assert (training.max_steps, training.seed, training.learning_rate) == (3, 2, 0.25)
    assert "extends" not in load_recipe_document(path).as_written


def test_of_several_the_later_one_wins(folder: Path) -> None:
    write(folder / "parts" / "one.yaml", "training: {seed: 1, max_steps: 1}\n")
    write(folder / "parts" / "two.yaml", "training: {seed: 2}\n")
    path = write(folder / "top.yaml", "extends: [base.yaml, parts/one.yaml, parts/two.yaml]\n")
    training = load_recipe(path).training
    assert (training.max_steps, training.seed, training.learning_rate) == (1, 2, 0.5)


def test_a_mistake_is_shown_in_the_file_it_stands_in(folder: Path) -> None:
    write(folder / "base.yaml", BASE.replace("0.5", "-1"))
    path = write(folder / "top.yaml", "extends: base.yaml\ntraining: {max_steps: many}\n")
    text = problems(path)
    assert f"{folder / 'base.yaml'}:8: training.learning_rate = -1" in text
    assert f'{path}:2: training.max_steps = "many"' in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: {file: base.yaml}\n", "must be a file name or a list of them"),
        ("extends: [base.yaml, 3]\n", "must be a file name or a list of them"),
        ("extends: [base.yaml, bas.yaml]\n", "'bas.yaml', which is not there"),
        ("extends: bas.yaml\n", "'bas.yaml', which is not there"),
        ("extends: ring.yaml\n", "leads back to itself: ring.yaml -> ring.yaml"),
    ],
)
def test_what_cannot_be_extended_is_named_with_its_line(folder: Path, text: str, words: str) -> None:
    path = write(folder / "ring.yaml", f"task: {{name: regression}}\n{text}")
    found = problems(path)
    assert words in found
    assert f"{path}:2: extends" in found


def test_two_files_that_extend_each_other_are_refused(folder: Path) -> None:
    one = write(folder / "one.yaml", "extends: two.yaml\n")
    write(folder / "two.yaml", "extends: one.yaml\n")
    assert "one.yaml -> two.yaml -> one.yaml" in problems(one)
