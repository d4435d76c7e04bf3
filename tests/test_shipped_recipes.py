"""Every shipped recipe parses, and its header tells the truth about itself."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from sktune.comparison.cells import plan_cells
from sktune.recipe import dump_recipe, load_recipe, parse_recipe, validate_files

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
STUDIES = sorted([*(ROOT / "recipes" / "paper").glob("*.yaml"), *(ROOT / "recipes" / "ablations").glob("*.yaml")])
COMPARISONS = sorted(
    path for path in (ROOT / "recipes" / "compare").glob("*.yaml") if path.stem not in ("base", "miniature")
)
PARTS = sorted((ROOT / "recipes" / "parts").glob("*/*.yaml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header(path: Path) -> dict[str, str]:
    """The parts of the comment at the head of a recipe: `Purpose:` and so on, with their text."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    parts: dict[str, str] = {}
    name = "Title"
    for line in lines:
        if match := re.match(r"(Purpose|Hardware|Data|Launch|Score|Override|Local):\s+(.*)", line):
            name, line = match.groups()
        parts[name] = f"{parts.get(name, '')}\n{line}".strip()
    return parts


def overrides_in(text: str) -> list[list[str]]:
    """For each line of a header part the overrides it shows, as a shell would pass them."""
    shown = []
    for line in text.splitlines():
        found = re.findall(r"(?<!\S)[a-z]+(?:\.[a-z_0-9]+)*=(?:'[^']*'|\S+)", line)
        if found := [part for part in found if not part.startswith("section.field")]:
            shown.append([shlex.split(part)[0].rstrip(",;") for part in found])
    return shown


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_recipes_are_there() -> None:
    assert {"quickstart", "llama7b_conll", "mistral7b_snli"} <= {path.stem for path in RECIPES}


@each_recipe
def test_it_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    written = tmp_path / "again.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(written) == recipe
    assert parse_recipe(recipe.model_dump(exclude_unset=True)) == recipe


@each_recipe
def test_its_header_says_what_it_is_for_and_on_what_it_runs(path: Path) -> None:
    parts = header(path)
    assert {"Title", "Purpose", "Hardware", "Launch", "Override", "Local"} <= set(parts)
    assert all(len(text) > 20 for text in parts.values())


@each_recipe
def test_its_commands_name_the_file_itself(path: Path) -> None:
    parts = header(path)
    command = rf"deepspeed --num_gpus \d+ launchers/train\.py --recipe recipes/{re.escape(path.name)}"
    assert re.match(command + r"$", parts["Launch"].splitlines()[0])
    assert re.search(command + r" [a-z]+\.[a-z_]+=\S+", parts["Override"])
    named = re.findall(r"recipes/\w+\.yaml", path.read_text(encoding="utf-8"))
    assert set(named) == {f"recipes/{path.name}"}


@each_recipe
def test_the_overrides_it_shows_are_accepted(path: Path) -> None:
    parts = header(path)
    examples = overrides_in(parts["Override"]) + overrides_in(parts["Local"])
    assert len(examples) >= 3
    for overrides in examples:
        assert load_recipe(path, overrides) != load_recipe(path)


@each_recipe
def test_every_run_has_a_folder_and_name_of_its_own(path: Path) -> None:
    assert load_recipe(path).output.dir == f"runs/{path.stem}"


def test_scores_in_headers_are_those_of_the_committed_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    shipped_recipes = importlib.import_module("shipped_recipes")
    result = json.loads((ROOT / "benchmarks" / "results" / "shipped_recipes.json").read_text(encoding="utf-8"))
    real = [path for path in RECIPES if path.stem.startswith("smollm2_")]
    assert {path.stem for path in real} >= set(result["recipes"]) != set()
    for path in real:
        found = result["recipes"].get(path.stem)
        assert header(path).get("Score") == (None if found is None else shipped_recipes.score_line(found))


def test_the_recipes_cover_methods_widths_and_tasks() -> None:
    recipes = [load_recipe(path) for path in RECIPES]
    assert sum(recipe.quantization.bits == 8 for recipe in recipes) >= 2
    assert sum(recipe.method.name == "sk_prompt" for recipe in recipes) >= 3
    assert {recipe.task.name for recipe in recipes} >= {
        "token_classification",
        "sequence_classification",
        "pair_classification",
        "causal_lm",
    }


def test_validate_accepts_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_files([str(path) for path in RECIPES]) == 0
    assert capsys.readouterr().out.count("OK ") == len(RECIPES)


# -- recipes made of parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_recipes_made_of_parts_parse_and_write_to_a_folder_of_their_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "extends:" in text
    assert load_recipe(path).output.dir == f"runs/{path.parent.name}/{path.stem}"


def test_every_part_is_used_and_no_recipe_is_made_twice() -> None:
    texts = [path.read_text(encoding="utf-8") for path in STUDIES]
    for part in PARTS:
        assert any(f"../parts/{part.parent.name}/{part.name}" in text for text in texts), part
    recipes = [load_recipe(path).model_dump(exclude={"output"}) for path in STUDIES]
    assert all(recipe not in recipes[:number] for number, recipe in enumerate(recipes))


def test_the_papers_tables_are_complete() -> None:
    found = {path.stem for path in STUDIES if path.parent.name == "paper"}
    glue = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    tasks = ("conll2003", "wikiann", "sst2", "emotion", "mrpc", "rte", "snli", "mnli")
    models = ("llama2_7b", "mistral_7b", "bloom_7b1", "falcon_7b", "phi_2")
    assert found == {
        *(f"roberta_{size}_{task}" for size in ("base", "large") for task in glue),
        *(f"{model}_{task}" for model in models for task in tasks),
        "xlmr_base_xnli",
    }


def test_both_methods_suit_every_table() -> None:
    for path in STUDIES:
        if path.parent.name == "paper":
            assert load_recipe(path, ["method.name=sk_prompt"]).method.name == "sk_prompt"


# -- comparisons ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_comparisons_can_be_planned_whole(path: Path, tmp_path: Path) -> None:
    cells, refused, base = plan_cells(path, [], tmp_path)
    assert refused == []
    assert base.recipe.output.dir == f"runs/compare/{path.stem}"
    methods = {cell.method for cell in cells}
    assert methods >= {"sk_prefix", "sk_prompt", "prompt_tuning", "prefix_tuning", "p_tuning", "lora"}
    assert ("head_only" in methods) == (base.recipe.task.name != "causal_lm")
    rates = base.recipe.compare.grid["training.learning_rate"]
    assert sum(cell.label == "sk_prefix" for cell in cells) == len(rates)
