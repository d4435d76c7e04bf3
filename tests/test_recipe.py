"""Recipes: reading, substitution, overrides, errors and the rules between fields."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sktune.methods import METHODS
from sktune.recipe import (
    RecipeError,
    dump_recipe,
    flatten,
    load_recipe,
    load_recipe_document,
    parse_recipe,
    validate_files,
)
from sktune.recipe.keys import KNOWN_ELSEWHERE, SECTIONS, field_info, variants
from sktune.recipe.rules import RULES
from sktune.tasks import TASKS

PLAIN: dict[str, Any] = {
    "model": {"name_or_path": "embedded:llama"},
    "method": {"name": "sk_prefix", "text": "Find the names."},
    "task": {"name": "token_classification"},
    "data": {"path": "embedded:newswire"},
    "output": {"dir": "runs/x"},
}
SENTENCES = {"task": {"name": "sequence_classification"}, "data": {"path": "embedded:sentiment"}}
WORDS = {
    "task": {"name": "causal_lm", "label_words": {"negative": "bad", "positive": "good"}},
    "data": {"path": "embedded:sentiment"},
}
ANSWERS = {"task": {"name": "causal_lm"}, "data": {"path": "some/set", "target_column": "answer"}}
YAML = """\
model:
  name_or_path: embedded:llama
method:
  name: sk_prefix
  text: Find the names.
task:
  name: token_classification
data:
  path: embedded:newswire
output:
  dir: runs/x
"""

Write = Callable[[str], Path]


def changed(*changes: dict[str, Any]) -> dict[str, Any]:
    """The plain recipe with fields set; another method replaces the section as a whole."""
    mapping = copy.deepcopy(PLAIN)
    for change in changes:
        for section, fields in change.items():
            if section == "method" and "name" in fields:
                mapping[section] = {}
            mapping.setdefault(section, {}).update(fields)
    return mapping


def problems_of(mapping: dict[str, Any]) -> dict[str, str]:
    """Field -> text of its problem."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(mapping)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


# --- reading -------------------------------------------------------------------------------------------


def test_a_recipe_file_loads_with_defaults(write: Write) -> None:
    recipe = load_recipe(write(YAML))
    assert recipe.method.name == "sk_prefix"
    assert recipe.training.learning_rate == 3e-3
    assert recipe.quantization.bits is None
    assert recipe == parse_recipe(PLAIN)


def test_numbers_need_no_dot_and_words_stay_words(write: Write) -> None:
    text = YAML.replace("token_classification", "sequence_classification").replace("newswire", "sentiment")
    text = text.replace("  name: sequence", "  labels: [no, yes, 1:30, 2024-01-01]\n  name: sequence")
    text += "training:\n  learning_rate: 1e-3\n  seed: 010\nquantization:\n  load_in_4bit: on\n"
    recipe = load_recipe(write(text))
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.seed == 10
    assert recipe.task.labels == ("no", "yes", "1:30", "2024-01-01")
    assert recipe.quantization.load_in_4bit is True


def test_an_empty_section_stands_for_its_defaults(write: Write) -> None:
    assert load_recipe(write(YAML + "training:\nquantization: null\n")) == parse_recipe(PLAIN)


def test_a_key_given_twice_is_an_error_with_both_lines(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"run.yaml:12: output.dir(.|\n)*on line 11 and again on line 12"):
        load_recipe(write(YAML + "  dir: runs/y\n"))


def test_a_key_that_is_no_text_is_an_error(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"tracking.tags.1(.|\n)*quotes"):
        load_recipe(write(YAML + "tracking:\n  tags: {1: x}\n"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("model: [1, 2\n", r"run.yaml:2:1"),
        ("model:\n\tname: x\n", r"run.yaml:2:1:(.|\n)*spaces"),
        ("model:\n  name: a: b\n", r"run.yaml:2:10:(.|\n)*quotes"),
        ("model: !!python/object/apply:os.getcwd []\n", r"run.yaml:1:8"),
        ("a: &a\n  b: *a\n", r"run.yaml:1(.|\n)*contains itself"),
        ("", "is empty"),
        ("- model\n", "not a mapping"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_one_message_with_its_place(write: Write, text: str, place: str) -> None:
    with pytest.raises(RecipeError, match=place) as caught:
        load_recipe(write(text))
    assert len(caught.value.problems) == 1


def test_a_missing_file_names_the_nearest_one(write: Write) -> None:
    path = write(YAML)
    with pytest.raises(RecipeError, match=r"does not exist(.|\n)*did you mean .*run\.yaml"):
        load_recipe(path.with_name("rum.yaml"))
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(path.parent)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: {name_or_path: é}".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)


# --- environment ---------------------------------------------------------------------------------------


def test_variables_are_replaced_in_whole_and_in_part(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT_OF_RUNS", "disk")
    monkeypatch.setenv("STEPS", "7")
    monkeypatch.delenv("ABSENT", raising=False)
    text = YAML.replace("runs/x", "${ROOT_OF_RUNS}/x/${ABSENT:-none}").replace("Find", "Find $${all}")
    recipe = load_recipe(write(text + "training:\n  max_steps: ${STEPS}\n"))
    assert recipe.output.dir == "disk/x/none"
    assert recipe.method.text == "Find ${all} the names."
    assert recipe.training.max_steps == 7


def test_an_unset_variable_names_field_and_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    with pytest.raises(RecipeError, match=r"run.yaml:11: output.dir(.|\n)*ABSENT is not set(.|\n)*export"):
        load_recipe(write(YAML.replace("runs/x", "${ABSENT}")))
    with pytest.raises(RecipeError, match=r"\$\{not a name\} is not a reference"):
        load_recipe(write(YAML.replace("runs/x", '"${not a name}"')))


def test_a_secret_stays_out_of_messages_and_logs(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    path = write(YAML + "tracking:\n  tracking_uri: https://${TOKEN}@host\n")
    loaded = load_recipe_document(path, ["tracking.tags.team=${TOKEN}"])
    assert loaded.recipe.tracking.tracking_uri == "https://s3cret@host"
    assert loaded.as_written["tracking"]["tracking_uri"] == "https://${TOKEN}@host"
    assert loaded.loggable()["tracking"]["tags"] == {"team": "${TOKEN}"}
    assert loaded.loggable()["training"]["learning_rate"] == 3e-3
    assert "s3cret" not in str(loaded.loggable())
    for field in (
        "model.dtype",
        "training.max_steps",
        "distributed.deepspeed",
        "method.name",
        "quantization",
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, [field + "=${TOKEN}"])
        assert "${TOKEN}" in str(caught.value)
        assert "s3cret" not in str(caught.value)


# --- overrides -----------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_the_last_one_wins(write: Write) -> None:
    recipe = load_recipe(
        write(YAML),
        [
            "training.learning_rate=1e-2",
            "training.max_steps=5",
            "training.max_steps=6",
            "data.validation=null",
            "tracking.tags.team.name=a=b",
            "method={name: head_only}",
        ],
    )
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (1e-2, 6)
    assert recipe.data.validation is None
    assert recipe.tracking.tags == {"team.name": "a=b"}
    assert recipe.method.name == "head_only"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("Answer: is it so?", "Answer: is it so?"),
        ("one: two: three # four", "one: two: three # four"),
        ("{text} [MASK]", "{text} [MASK]"),
        ("*all* of it", "*all* of it"),
        (" a ", "a"),
        ('"a\\n b "', "a\n b "),
        ("'1'", "1"),
    ],
)
def test_an_override_of_a_text_is_that_text(write: Write, given: str, read: str) -> None:
    assert load_recipe(write(YAML), [f"method.text={given}"]).method.text == read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.learnin_rate=1",
            r"\(override\): training.learnin_rate = 1(.|\n)*mean training.learning_rate",
        ),
        ("trainin.max_steps=1", "did you mean training.max_steps"),
        ("learning_rate=1", "did you mean training.learning_rate"),
        ("training.max_steps", r"has no `=`(.|\n)*section.field=value"),
        ("--training.max_steps=1", r"starts with a dash(.|\n)*training.max_steps="),
        ("training.max_steps.x=1", "no fields below"),
        ("task.labels=[a", "not valid YAML"),
        ("method.text='a", "not valid YAML"),
        ("method.text=1", "method.text = 1"),
        ("training.max_steps=-1", r"\(override\): training.max_steps = -1(.|\n)*greater than or equal to 0"),
    ],
)
def test_a_wrong_override_says_what_was_meant(write: Write, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(YAML), [override])


def test_overrides_leave_the_written_mapping_of_others_alone(write: Write) -> None:
    path = write(YAML)
    assert load_recipe(path, ["output.dir=runs/y"]).output.dir == "runs/y"
    assert load_recipe(path).output.dir == "runs/x"


# --- errors --------------------------------------------------------------------------------------------


def test_all_errors_come_at_once_with_place_value_range_and_cure(write: Write) -> None:
    text = YAML.replace("embedded:llama", "embedded:llama\n  learning_rate: 3")
    text += "training:\n  learning_rate: -1\n  max_steps: many\n  lr: 2\n"
    text += "quantization:\n  bnb_4bit_quant_type: nf4\nmodell: 1\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text), ["data.max_length=1", "nonsense"])
    message = str(caught.value)
    assert message.startswith("8 errors in recipe")
    for expected in (
        "run.yaml:3: model.learning_rate = 3",
        "did you mean training.learning_rate?",
        "run.yaml:14: training.learning_rate = -1",
        "allowed: a number, > 0",
        "default (0.003)",
        'run.yaml:15: training.max_steps = "many"',
        "run.yaml:16: training.lr = 2",
        "run.yaml:18: quantization.bnb_4bit_quant_type",
        "run.yaml:19: modell = 1",
        "did you mean model?",
        "run.yaml (override): data.max_length = 1",
        "'nonsense' has no `=`",
    ):
        assert expected in message


def test_the_method_is_named_without_the_union(write: Write) -> None:
    assert set(problems_of(changed({"method": {"rank": 0}}))) == {"method.rank"}
    unknown = changed({"method": {"name": "loora"}})
    assert "sk_prefix, sk_prompt, head_only" in problems_of(unknown)["method.name"]
    unnamed = changed()
    del unnamed["method"]["name"]
    assert "is required" in problems_of(unnamed)["method.name"]
    other = changed({"method": {"name": "head_only", "semantics": "cached"}})
    assert "sk_prefix and sk_prompt, not of head_only" in problems_of(other)["method.semantics"]


def test_missing_sections_and_fields_are_named() -> None:
    problems = problems_of({"data": {}, "training": 3, "method": {"name": "sk_prompt"}})
    assert {"model", "task", "output", "data.path", "method.text", "training"} == set(problems)
    assert "add `output:` and below it, indented, `dir: ...`" in problems["output"]
    assert "add `path:` below `data:`" in problems["data.path"]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("training", "max_steps", True), ("training", "learning_rate", float("inf")), ("training", "seed", 1.5)],
)
def test_what_is_no_number_is_not_taken_for_one(section: str, field: str, value: Any) -> None:
    assert set(problems_of(changed({section: {field: value}}))) == {f"{section}.{field}"}


def test_numbers_in_place_of_texts_want_quotes() -> None:
    problems = problems_of(changed({"task": {"labels": [0, 1]}, "tracking": {"tags": {"seed": 3}}}))
    assert {"task.labels.0", "task.labels.1", "tracking.tags.seed"} == set(problems)
    assert "quotes" in problems["tracking.tags.seed"]


def test_names_of_other_tools_lead_to_fields_that_exist() -> None:
    for meant in KNOWN_ELSEWHERE.values():
        assert field_info(*meant.split(".")) is not None
    assert "did you mean data.path?" in problems_of(changed({"data": {"dataset": "x"}}))["data.dataset"]


# --- out -----------------------------------------------------------------------------------------------


def test_what_is_dumped_loads_back_equal(write: Write) -> None:
    text = "no ${REF} and $${more}: 'quotes'\nsecond line é"
    changes: dict[str, Any] = {
        "method": {"text": text},
        "task": {"labels": ["1e-3", "no", "7", "null"]},
        "training": {"learning_rate": 1e-5, "max_steps": 3},
        "tracking": {"tags": {"a.b": "0x1f"}},
    }
    recipe = parse_recipe(changed(changes))
    assert recipe.method.text == text  # type: ignore[union-attr]
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_flatten_gives_dotted_plain_values() -> None:
    flat = flatten({"a": {"b": 1, "c": {"d": None}}, "e": ["x", "y"], "f": {}, "g": True, "h": 0.5})
    assert flat == {"a.b": 1, "a.c.d": "null", "e": '["x", "y"]', "f": "{}", "g": True, "h": 0.5}


def test_validate_reports_each_file_and_fails_if_any_does(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(YAML)
    bad = tmp_path / "bad.yaml"
    bad.write_text(YAML.replace("runs/x", '""'), encoding="utf-8")
    assert validate_files([str(good)]) == 0
    assert validate_files([str(good), str(bad)], ["training.max_steps=3"]) == 1
    output = capsys.readouterr()
    assert f"OK {good}: sk_prefix on embedded:llama" in output.out
    assert "1 of 2 recipes are good" in output.out
    assert "bad.yaml:11: output.dir" in output.err
    assert validate_files([]) == 1


def test_checking_a_recipe_imports_no_heavy_library() -> None:
    code = (
        "import sys; from sktune.recipe import load_recipe; from sktune.recipe.keys import variants;"
        "load_recipe('recipes/quickstart.yaml'); variants('method'); print(*sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    loaded = done.stdout.split()
    assert "sktune.recipe" in loaded
    assert not {"torch", "transformers", "datasets", "mlflow", "deepspeed"} & set(loaded)


# --- rules ---------------------------------------------------------------------------------------------


def with_method(name: str, **fields: Any) -> dict[str, Any]:
    """The recipe with another method."""
    return changed({"method": {"name": name, **fields}})


def by(name: str, **fields: Any) -> dict[str, Any]:
    """A method section, in float32 where the model's own weights train."""
    model = {"model": {"name_or_path": "embedded:llama", "dtype": "float32"}} if name == "prompt_based" else {}
    return {"method": {"name": name, **fields}, **model}


NF4 = {"quantization": {"bnb_4bit_quant_type": "nf4"}}
EVERY_STEP = {"semantics": "every_step"}
PAIRS = {
    "task": {"name": "pair_classification"},
    "data": {"path": "embedded:entailment", "text_pair_column": "h"},
}

# rule -> (a recipe that breaks it and nothing else, the field it names, a near neighbour that is fine)
RATES = {"training.learning_rate": [1e-3, 2e-3]}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "one_bit_width": (
        changed({"quantization": {"load_in_4bit": True, "load_in_8bit": True}}),
        "quantization.load_in_8bit",
        changed({"quantization": {"load_in_4bit": False, "load_in_8bit": True}}),
    ),
    "options_of_4bit_need_4bit": (
        changed(NF4),
        "quantization.bnb_4bit_quant_type",
        changed(NF4, {"quantization": {"load_in_4bit": True}}),
    ),
    "options_of_8bit_need_8bit": (
        changed({"quantization": {"load_in_4bit": True, "llm_int8_threshold": 6.0}}),
        "quantization.llm_int8_threshold",
        changed({"quantization": {"load_in_8bit": True, "llm_int8_threshold": 6.0}}),
    ),
    "skip_modules_need_quantization": (
        changed({"quantization": {"skip_modules": ["x"]}}),
        "quantization.skip_modules",
        changed({"quantization": {"skip_modules": ["x"], "load_in_8bit": True}}),
    ),
    "flash_attention_needs_16_bits": (
        changed({"model": {"attn_implementation": "flash_attention_2", "dtype": "float32"}}),
        "model.attn_implementation",
        changed({"model": {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"}}),
    ),
    "embedded_model_exists": (
        changed({"model": {"name_or_path": "embedded:lama"}}),
        "model.name_or_path",
        changed({"model": {"name_or_path": "some/lama"}}),
    ),
    "embedded_models_have_no_revision": (
        changed({"model": {"revision": "main"}}),
        "model.revision",
        changed({"model": {"revision": "main", "name_or_path": "some/llama"}}),
    ),
    "gguf_file_is_inside_a_folder": (
        changed({"model": {"name_or_path": "some/m.gguf", "gguf_file": "n.gguf"}}),
        "model.gguf_file",
        changed({"model": {"name_or_path": "some/llama-GGUF", "gguf_file": "n.gguf"}}),
    ),
    "gguf_has_neither_revision_nor_code": (
        changed({"model": {"name_or_path": "some/m.gguf", "revision": "main"}}),
        "model.revision",
        changed({"model": {"name_or_path": "some/llama-GGUF", "gguf_file": "n.gguf", "revision": "main"}}),
    ),
    "something_is_trained": (
        changed(WORDS, {"method": {"name": "head_only"}}),
        "method.name",
        changed(WORDS, {"method": {"name": "lora"}}),
    ),
    "pair_template_needs_a_pair": (
        changed({"data": {"pair_template": "{text} {text_pair}"}}),
        "data.pair_template",
        changed(PAIRS, {"data": {"pair_template": "{text} {text_pair}"}}),
    ),
    "pair_template_names_both_texts": (
        changed(PAIRS, {"data": {"pair_template": "{text} {hypothesis}"}}),
        "data.pair_template",
        changed(PAIRS, {"data": {"pair_template": "{text_pair}, so {text}?"}}),
    ),
    "text_template_is_for_single_texts": (
        changed(PAIRS, {"data": {"text_template": "{text} so:"}}),
        "data.text_template",
        changed(SENTENCES, {"data": {"text_template": "{text} so:"}}),
    ),
    "text_template_names_the_text": (
        changed(SENTENCES, {"data": {"text_template": "a review"}}),
        "data.text_template",
        changed(SENTENCES, {"data": {"text_template": "{text} "}}),
    ),
    "columns_belong_to_the_task": (
        changed({"data": {"label_column": "y"}}),
        "data.label_column",
        changed({"data": {"tags_column": "y"}}),
    ),
    "conll_holds_tagged_words": (
        changed(SENTENCES, {"data": {"path": "folder", "format": "conll"}}),
        "data.format",
        changed({"data": {"path": "folder", "format": "conll"}}),
    ),
    "conll_columns_need_conll": (
        changed({"data": {"path": "folder", "format": "jsonl", "conll_tag_column": 2}}),
        "data.conll_tag_column",
        changed({"data": {"path": "folder", "conll_tag_column": 2}}),
    ),
    "states_are_kept_where_something_is_frozen": (
        changed({"training": {"frozen_states_dir": "kept", "frozen_states": "off"}}),
        "training.frozen_states_dir",
        changed({"training": {"frozen_states_dir": "kept", "frozen_states": "auto"}}),
    ),
    "column_names_are_of_text_tables": (
        changed(SENTENCES, {"data": {"path": "folder", "format": "jsonl", "column_names": ["text", "label"]}}),
        "data.column_names",
        changed(SENTENCES, {"data": {"path": "folder", "format": "csv", "column_names": ["text", "label"]}}),
    ),
    "splits_name_something": (
        changed({"data": {"path": "folder", "train": []}}),
        "data.train",
        changed({"data": {"path": "folder", "train": ["a.conll", "b.conll"]}}),
    ),
    "sample_limits_need_their_split": (
        changed({"data": {"max_test_samples": 3}}),
        "data.max_test_samples",
        changed({"data": {"max_test_samples": 3, "test": "test"}}),
    ),
    "embedded_data_exist": (
        changed({"data": {"path": "embedded:news"}}),
        "data.path",
        changed({"data": {"path": "some/news"}}),
    ),
    "embedded_ratings_are_numbers": (
        changed(SENTENCES, {"data": {"path": "embedded:film_reviews/ratings"}}),
        "data.path",
        changed({"task": {"name": "regression"}, "data": {"path": "embedded:film_reviews/ratings"}}),
    ),
    "embedded_data_have_no_configuration": (
        changed({"data": {"name": "en"}}),
        "data.name",
        changed({"data": {"name": "en", "path": "some/set"}}),
    ),
    "best_metric_is_one_of_the_task": (
        changed({"training": {"metric_for_best_model": "matthews"}}),
        "training.metric_for_best_model",
        changed(SENTENCES, {"training": {"metric_for_best_model": "matthews"}}),
    ),
    "evaluation_needs_validation_data": (
        changed({"training": {"early_stopping_patience": 2}, "data": {"validation": None}}),
        "training.early_stopping_patience",
        changed({"training": {"early_stopping_patience": 2, "eval_steps": 5}}),
    ),
    "threshold_needs_patience": (
        changed({"training": {"early_stopping_threshold": 0.1}}),
        "training.early_stopping_threshold",
        changed({"training": {"early_stopping_threshold": 0.1, "early_stopping_patience": 1}}),
    ),
    "warmup_fits_into_training": (
        changed({"training": {"warmup_steps": 11, "max_steps": 10}}),
        "training.warmup_steps",
        changed({"training": {"warmup_steps": 10, "max_steps": 10}}),
    ),
    "head_rate_needs_a_head": (
        changed(WORDS, {"training": {"head_learning_rate": 1e-3}}),
        "training.head_learning_rate",
        changed({"training": {"head_learning_rate": 1e-3}}),
    ),
    "deepspeed_is_a_preset_or_a_file": (
        changed({"distributed": {"deepspeed": "zero5"}}),
        "distributed.deepspeed",
        changed({"distributed": {"deepspeed": None}}),
    ),
    "unfrozen_layers_are_whole": (
        with_method("full"),
        "model.dtype",
        {**with_method("full"), "model": {"name_or_path": "embedded:llama", "dtype": "float32"}},
    ),
    "sharding_is_up_to_zero3": (
        changed({"distributed": {"deepspeed": "zero2", "shard_backbone": True}}),
        "distributed.shard_backbone",
        changed({"distributed": {"deepspeed": "zero3", "shard_backbone": "auto"}}),
    ),
    "output_has_a_name": (
        changed({"output": {"dir": " "}}),
        "output.dir",
        changed({"output": {"dir": "x"}}),
    ),
    "resume_keeps_what_is_there": (
        changed({"output": {"overwrite": True}, "training": {"resume": "auto"}}),
        "output.overwrite",
        changed({"output": {"overwrite": True}}),
    ),
    "labels_are_names": (
        changed({"compare": {"methods": {"lora.rank": {"name": "lora"}}}}),
        "compare.methods.lora.rank",
        changed({"compare": {"methods": {"lora_2": {"name": "lora", "rank": 2}}}}),
    ),
    "grid_names_fields_that_may_differ": (
        changed({"compare": {"grid": {"method.rank": [1, 2]}}}),
        "compare.grid.method.rank",
        changed({"compare": {"grid": RATES}}),
    ),
    "own_grids_are_of_the_grid": (
        changed({"compare": {"grid": RATES, "own_grids": {"lora": {"training.max_steps": [5, 6]}}}}),
        "compare.own_grids.lora.training.max_steps",
        changed({"compare": {"grid": RATES, "own_grids": {"lora": {"training.learning_rate": [1e-4]}}}}),
    ),
    "grid_values_differ": (
        changed({"compare": {"grid": {"training.max_steps": [5, 5]}}}),
        "compare.grid.training.max_steps",
        changed({"compare": {"grid": {"training.max_steps": [5, 6]}}}),
    ),
}

# what is wrong with a method's own options, or with them beside the task or the data -> likewise
METHOD_CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "text_says_something": (
        changed({"method": {"text": "  "}}),
        "method.text",
        changed({"method": {"text": " x "}}),
    ),
    "trainable_text_needs_every_step": (
        changed({"method": {"trainable_text": True}}),
        "method.trainable_text",
        changed({"method": {"trainable_text": True, **EVERY_STEP}}),
    ),
    "adapter_options_have_effect": (
        changed({"method": {"adapter": "linear", "rank": 8}}),
        "method.rank",
        changed({"method": {"adapter": "linear", "bias": False, "shared": True}}),
    ),
    "an_adapter_is_trained": (
        changed(WORDS, {"method": {"adapter": "identity"}}),
        "method.adapter",
        changed(WORDS, {"method": {"adapter": "identity", "trainable_text": True, **EVERY_STEP}}),
    ),
    "text_goes_with_init_text": (
        with_method("prompt_tuning", init="text"),
        "method.text",
        with_method("prompt_tuning", init="text", text="which ?"),
    ),
    "reparametrization_starts_from_noise": (
        with_method("prefix_tuning", init="text", text="which ?", reparametrize=True),
        "method.reparametrize",
        with_method("prefix_tuning", reparametrize=True, hidden_size=8),
    ),
    "p_tuning_options_have_effect": (
        with_method("p_tuning", num_layers=3),
        "method.num_layers",
        with_method("p_tuning", encoder="lstm", num_layers=3),
    ),
    "start_from_labels_needs_labels": (
        changed(ANSWERS, {"method": {"name": "prompt_tuning", "init": "labels"}}),
        "method.init",
        with_method("prompt_tuning", init="labels"),
    ),
    "ia3_feedforward_is_among_its_targets": (
        with_method("ia3", target_modules=["k_proj"], feedforward_modules=["down_proj"]),
        "method.feedforward_modules",
        with_method("ia3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "a_word_answers_for_a_whole_text": (
        with_method("in_context"),
        "method.name",
        changed(SENTENCES, by("in_context")),
    ),
    "template_has_its_slots": (
        changed(SENTENCES, by("prompt_based", template="{text} It was {answr} .")),
        "method.template",
        changed(SENTENCES, by("prompt_based", template="{text} {{It}} was {answer} .")),
    ),
    "label_words_of_the_method_tell_labels_apart": (
        changed(SENTENCES, by("in_context", label_words={"a": "great", "b": " great"})),
        "method.label_words",
        changed(SENTENCES, by("in_context", label_words={"a": "great", "b": "bad"})),
    ),
    "label_words_of_the_method_are_of_the_labels": (
        changed(SENTENCES, by("in_context", label_words={"a": "x", "b": "y"}), {"task": {"labels": ["a", "c"]}}),
        "method.label_words",
        changed(SENTENCES, by("in_context", label_words={"a": "x", "b": "y"}), {"task": {"labels": ["b", "a"]}}),
    ),
    "choice_needs_demonstrations": (
        changed(SENTENCES, by("in_context", choose="similar")),
        "method.choose",
        changed(SENTENCES, by("in_context", choose="similar", demonstrations=1)),
    ),
}

# what is wrong with a task's own fields, or with them beside the data -> likewise
TASK_CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "causal_lm_has_one_kind_of_target": (
        changed(WORDS, ANSWERS),
        "task.label_words",
        changed(ANSWERS),
    ),
    "label_words_tell_labels_apart": (
        changed(WORDS, {"task": {"label_words": {"a": "x", "b": " x"}}}),
        "task.label_words",
        changed(WORDS, {"task": {"label_words": {"a": "x", "b": "y"}}}),
    ),
    "labels_agree_with_label_words": (
        changed(WORDS, {"task": {"labels": ["negative", "neutral"]}}),
        "task.labels",
        changed(WORDS, {"task": {"labels": ["positive", "negative"]}}),
    ),
    "labels_are_two_or_more": (
        changed({"task": {"labels": ["O", "O"]}}),
        "task.labels",
        changed({"task": {"labels": ["O", "B-PER"]}}),
    ),
    "max_new_tokens_needs_generation": (
        changed(WORDS, {"task": {"max_new_tokens": 4}}),
        "task.max_new_tokens",
        changed(ANSWERS, {"task": {"max_new_tokens": 4}}),
    ),
    "pairs_need_a_second_column": (
        changed(PAIRS, {"data": {"text_pair_column": None}}),
        "data.text_pair_column",
        changed(PAIRS),
    ),
    "free_text_has_no_labels": (
        changed(ANSWERS, {"task": {"labels": ["a", "b"]}}),
        "task.labels",
        changed(WORDS, {"task": {"labels": ["positive", "negative"]}}),
    ),
}

# fields of data that another task reads -> likewise
COLUMN_CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "targets_in_words_need_causal_lm": (
        changed({"data": {"target_column": "answer"}}),
        "data.target_column",
        changed({"data": {"target_column": None}}),
    ),
    "pairs_are_not_tagged": (
        changed({"data": {"text_pair_column": "h"}}),
        "data.text_pair_column",
        changed(SENTENCES, {"data": {"text_pair_column": "h"}}),
    ),
}


def test_every_case_belongs_to_a_rule() -> None:
    assert set(CASES) == {rule.__name__ for rule in RULES}


def test_every_method_with_rules_of_its_own_has_a_case() -> None:
    with_rules = {cls for name in METHODS for cls in METHODS.config(name).__mro__ if "problems" in vars(cls)}
    broken = {cls for wrong, _, _ in METHOD_CASES.values() for cls in METHODS.config(wrong["method"]["name"]).__mro__}
    assert with_rules <= broken


def test_every_task_with_rules_of_its_own_has_a_case() -> None:
    with_rules = {cls for name in TASKS for cls in TASKS.config(name).__mro__ if "problems" in vars(cls)}
    broken = {cls for wrong, _, _ in TASK_CASES.values() for cls in TASKS.config(wrong["task"]["name"]).__mro__}
    assert with_rules <= broken


ALL_CASES = CASES | METHOD_CASES | TASK_CASES | COLUMN_CASES


@pytest.mark.parametrize("rule", ALL_CASES)
def test_rule(rule: str) -> None:
    """Each rule finds its mistake, names the field, offers a cure, and leaves the near neighbour alone."""
    wrong, field, right = ALL_CASES[rule]
    problems = problems_of(wrong)
    assert set(problems) == {field}
    assert "cure: " in problems[field]
    parse_recipe(right)


def test_embedded_data_are_no_model_and_labels_are_no_numbers() -> None:
    """None of these names was fetched: a recipe with them is valid all the same."""
    assert "is data" not in problems_of(changed({"model": {"name_or_path": "embedded:smol"}}))["model.name_or_path"]
    wrong = changed({"model": {"name_or_path": "embedded:tweets", "tokenizer": "embedded:editorials"}})
    problems = problems_of(wrong)
    assert "is data (tweets: positive or negative), no model" in problems["model.name_or_path"]
    assert "embedded:smollm2, embedded:minilm" in problems["model.tokenizer"]
    assert "is a model" in problems_of(changed({"data": {"path": "embedded:minilm"}}))["data.path"]
    labels = changed({"task": {"name": "regression"}, "data": {"path": "embedded:tweets"}})
    assert "embedded:tweets/ratings" in problems_of(labels)["data.path"]
    right = {"model": {"name_or_path": "embedded:smollm2"}, "data": {"path": "embedded:tweets"}}
    parse_recipe(changed(SENTENCES, right))


def test_causal_lm_without_any_target_or_anything_to_train() -> None:
    assert "neither" in problems_of(changed({**ANSWERS, "data": {"path": "some/set"}}))["task.label_words"]
    headless = changed(WORDS, {"method": {"name": "head_only"}})
    assert "nothing would be trained" in problems_of(headless)["method.name"]


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"task": {"name": "regression", "labels": ["a", "b"]}, "data": {"path": "some/set"}}, "labels"),
        ({"task": {"pooling": "mean"}}, "pooling"),
        ({**SENTENCES, "task": {"name": "sequence_classification", "labelled_piece": "last"}}, "labelled_piece"),
        ({**SENTENCES, "task": {"name": "sequence_classification", "label_words": {"a": "b"}}}, "label_words"),
        ({"task": {"name": "causal_lm", "head_dropout": 0.1}, "data": ANSWERS["data"]}, "head_dropout"),
        ({"task": {"name": "regression", "max_new_tokens": 4}, "data": {"path": "some/set"}}, "max_new_tokens"),
    ],
)
def test_fields_of_another_task_are_refused_by_its_name(sections: dict[str, Any], field: str) -> None:
    wrong = changed(sections)
    owners = " and ".join(name for name in TASKS if field in TASKS.config(name).model_fields)
    problems = problems_of(wrong)
    assert set(problems) == {f"task.{field}"}
    assert f"is a field of {owners}, not of {wrong['task']['name']}" in problems[f"task.{field}"]


def test_a_task_that_is_not_there_and_a_field_that_no_task_has() -> None:
    assert ", ".join(TASKS) in problems_of(changed({"task": {"name": "ner"}}))["task.name"]
    assert "did you mean task.labels?" in problems_of(changed({"task": {"lables": ["a", "b"]}}))["task.lables"]


WITHOUT_HELP = {("method", "name"), ("task", "name")}
"""What these say is said by their section."""


def test_every_field_of_every_section_has_a_help_text() -> None:
    fields = {
        (name, key): info
        for name in SECTIONS
        for cls in variants(name).values()
        for key, info in cls.model_fields.items()
    }
    assert not [place for place, info in fields.items() if place not in WITHOUT_HELP and not info.description]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": {"name": "qlora"}}, "did you mean method.name: lora with quantization.load_in_4bit: true?"),
        ({"method": {"name": "lroa"}}, "did you mean lora?"),
        ({"task": {"name": "ner"}}, "did you mean task.name: token_classification?"),
        ({"model": {"dtype": "bf16"}}, "did you mean bfloat16?"),
        ({"training": {"epochs": 2}}, "did you mean training.num_train_epochs?"),
        ({"method": {"name": "lora", "r": 2}}, "did you mean method.rank?"),
        ({"method": {"name": "lora", "lora_alpha": 2}}, "did you mean method.alpha?"),
        ({"model": {"bf16": True}}, "did you mean model.dtype?"),
    ],
)
def test_other_names_of_values_and_fields_are_known(change: dict[str, Any], words: str) -> None:
    assert any(words in str(problem) for problem in problems_of(changed(change)).values())


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ({"name": "prompt_tuning", "text": "which ?"}, "text"),
        ({"name": "prefix_tuning", "text": "which ?"}, "text"),
        ({"name": "prefix_tuning", "hidden_size": 8}, "hidden_size"),
        ({"name": "p_tuning", "anchors": ["which"]}, "anchors"),
        ({"name": "p_tuning", "template": "which ?", "num_virtual_tokens": 3}, "num_virtual_tokens"),
    ],
)
def test_options_of_other_methods_that_would_do_nothing(method: dict[str, Any], field: str) -> None:
    assert "would do nothing" in problems_of(changed({"method": method}))[f"method.{field}"]


@pytest.mark.parametrize("name", ["full", "top_layers", "prompt_based"])
def test_packed_weights_cannot_be_trained(name: str) -> None:
    task = SENTENCES if name == "prompt_based" else {}
    wrong = {**changed(task, {"method": {"name": name}}), "quantization": {"load_in_4bit": True}}
    assert "no gradient in 4 bits" in problems_of(wrong)["method.name"]


def test_every_evaluation_option_needs_validation_data() -> None:
    training = {"eval_steps": 5, "early_stopping_patience": 1, "metric_for_best_model": "f1"}
    problems = problems_of(changed({"training": training, "data": {"validation": None}}))
    assert set(problems) == {f"training.{key}" for key in training}


@pytest.mark.parametrize(
    ("deepspeed", "choice", "words"),
    [
        ("zero2", False, "would do nothing"),
        ("zero2", "auto", "would do nothing"),
        (None, True, "cannot be true"),
        (None, False, "would do nothing"),
        ("zero3_offload", False, "cannot be false"),
        ("zero3_offload", "auto", "cannot be auto"),
        ("zero3", "maybe", "must be"),
    ],
)
def test_sharding_the_backbone_is_up_to_zero3(deepspeed: str | None, choice: Any, words: str) -> None:
    distributed = {"deepspeed": deepspeed, "shard_backbone": choice}
    assert words in problems_of(changed({"distributed": distributed}))["distributed.shard_backbone"]
    parse_recipe(changed({"distributed": {"deepspeed": deepspeed}}))


def test_a_deepspeed_file_must_exist(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    wrong = changed({"distributed": {"deepspeed": str(own)}})
    assert "no such DeepSpeed file" in problems_of(wrong)["distributed.deepspeed"]
    own.write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    assert parse_recipe(wrong).distributed.deepspeed == str(own)


@pytest.mark.parametrize(
    ("change", "main"),
    [({}, "f1"), (SENTENCES, "accuracy"), (PAIRS, "accuracy"), (WORDS, "accuracy"), (ANSWERS, "perplexity")],
)
def test_the_main_metric_of_a_task_comes_first(change: dict[str, Any], main: str) -> None:
    assert parse_recipe(changed(change)).task.metrics()[0] == main


def test_rules_run_for_good_sections_beside_bad_ones() -> None:
    wrong = changed(NF4, {"training": {"learning_rate": 0}})
    assert set(problems_of(wrong)) == {"training.learning_rate", "quantization.bnb_4bit_quant_type"}
