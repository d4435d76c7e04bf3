"""`sktune init`: a recipe for a data file of the user's own."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sktune.cli.arguments import Command
from sktune.errors import UserError
from sktune.process import guarded
from sktune.terminal import say

_EXAMPLES = """examples:
  sktune init
  sktune init --data reviews.csv --model embedded:llama --task sequence_classification --output reviews.yaml
"""
_ROWS_READ = 5000
_TEXTS = ("text", "sentence", "review", "content", "document", "question", "premise", "sentence1", "text1")
_PAIRS = ("text_pair", "hypothesis", "sentence2", "text2", "answer", "context")
_LABELS = ("label", "labels", "class", "category", "sentiment", "score", "rating", "target", "answer", "output")
_SPLITS = {"validation": ("validation", "valid", "dev"), "test": ("test",)}


@click.command("init", cls=Command, epilog=_EXAMPLES)
@click.option("--data", metavar="FILE", help="Training data: CSV, TSV, JSON lines, Parquet or CoNLL columns.")
@click.option("--model", metavar="M", help="Hub id, folder of safetensors, .gguf file or embedded: name.")
@click.option("--task", metavar="T", help="One of `sktune list tasks`.")
@click.option("--output", default="recipe.yaml", show_default=True, type=click.Path(path_type=Path), help="The recipe.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def command(data: str | None, model: str | None, task: str | None, output: Path, force: bool) -> int:
    """Write a commented recipe for a data file.

    Asks for what no option gives; without a terminal it says which option is missing.
    """
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists; give another --output, or --force", click.get_current_context())
    data = data or _ask("data", "Training data (a file)")
    model = model or _ask("model", "Model (hub id, folder, .gguf file or embedded: name)")
    task = task or _ask("task", f"Task ({', '.join(_tasks())})")
    return guarded(_write, Path(data), model, task, output)


def _ask(option: str, question: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"--{option} is missing, and there is no terminal to ask", click.get_current_context())
    answer: str = click.prompt(question)
    return answer


def _tasks() -> list[str]:
    from sktune.tasks import TASKS

    return list(TASKS)


def _write(data: Path, model: str, task: str, output: Path) -> None:
    import yaml

    from sktune.recipe import parse_recipe
    from sktune.recipe.keys import meant_value

    if task not in _tasks():
        meant = meant_value("task", "name", task, _tasks()).rpartition(": ")[2]
        raise UserError(
            f"--task: there is no {task!r}; " + (f"did you mean {meant}?" if meant else ", ".join(_tasks()))
        )
    if not data.is_file():
        raise UserError(f"--data: there is no file {data}")
    fields, found = _look_into(data, task)
    text = _recipe_text(data, model, task, fields, found, output.stem)
    parse_recipe(yaml.safe_load(text), str(output))  # what is written validates
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    say(f"{output}: written ({found})\nnext: sktune validate {output} --data; sktune train {output}")


def _look_into(data: Path, task: str) -> tuple[dict[str, str], str]:
    """(fields of the section `data`, what was found in words).

    Raises:
        UserError: where the file lacks a column that the task needs.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported
    from sktune.data.tables import read_table
    from sktune.sections import DataSection
    from sktune.tasks import TASKS

    config = TASKS.config(task)
    format = {".json": "jsonl"}.get(data.suffix.lower(), data.suffix.lower().removeprefix("."))
    if config.reads_words and format not in ("jsonl", "parquet", "csv"):
        return {}, "words and tags in the first and last of the file's columns"
    if format not in ("csv", "tsv", "jsonl", "parquet"):
        raise UserError(f"--data: {data} is none of .csv, .tsv, .jsonl, .json, .parquet, which {task} is read from")
    table = read_table(data, format)
    values = table.fetch(table.names)
    defaults = DataSection(path=".")
    if config.reads_words:
        columns = {"words_column": defaults.words_column, "tags_column": defaults.tags_column}
        table.columns({f"data.{field}": name for field, name in columns.items()})
        return columns, f"{table.length} rows"
    answer = "target_column" if "target_column" in config.columns else "label_column"
    in_pairs = any(problem.field == "data.text_pair_column" for problem in config().problems(defaults))
    label = _named(table.names, _LABELS) or min(table.names, key=lambda name: _distinct(values[name]))
    rest = [name for name in table.names if name != label]
    if len(rest) < (2 if in_pairs else 1):
        raise UserError(f"--data: {data} has the columns {', '.join(table.names)}: too few for {task}")
    first = _named(rest, _TEXTS) or max(rest, key=lambda name: sum(len(str(v)) for v in values[name][:_ROWS_READ]))
    fields = {"text_column": first, answer: label}
    if in_pairs:
        others = [name for name in rest if name != first]
        fields["text_pair_column"] = _named(others, _PAIRS) or others[0]
    found = f"{table.length} rows"
    if config().has_label_set:
        counted = Counter(str(value) for value in values[label]).most_common(8)
        found += "; labels: " + ", ".join(f"{name} {count}" for name, count in counted)
    return fields, found


def _named(names: Sequence[str], usual: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def _distinct(values: Sequence[Any]) -> int:
    return len({str(value) for value in values[:_ROWS_READ]})


def _recipe_text(data: Path, model: str, task: str, fields: dict[str, str], found: str, name: str) -> str:
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    columns = "".join(f"  {field}: {quoted(column)}\n" for field, column in fields.items())
    splits = ""
    for split, names in _SPLITS.items():
        beside = next(
            (data.with_name(n + data.suffix) for n in names if data.with_name(n + data.suffix).is_file()), None
        )
        known = beside is not None and beside != data
        note = "" if known else f"    # name a file beside {data.name} to score it"
        splits += f"  {split}: {quoted(beside.name) if beside else 'null'}{note}\n"
    return f"""# {task} on {data.name}, made by `sktune init` ({found})
# All fields: sktune list fields

model:
  name_or_path: {quoted(model)}
  dtype: float32            # bfloat16 on GPUs

quantization:
  load_in_4bit: false       # true: a quarter of the memory of 16 bits

method:
  name: sk_prefix           # others: sktune list methods
  # What the frozen model reads first: say in words what the task is, and name the labels.
  text: {quoted(f"{task.replace('_', ' ')} of the text :")}

task:
  name: {task}

data:
  path: {quoted(str(data.parent))}
  train: {quoted(data.name)}
{splits}{columns}  max_length: 128           # tokens; sktune validate --data says what is cut

training:
  num_train_epochs: 3
  per_device_train_batch_size: 8
  learning_rate: 1.0e-2     # prefix and prompt methods need 1e-3 to 3e-2, LoRA 1e-4 to 1e-3

distributed:
  deepspeed: null           # zero3 shares the model among the processes that deepspeed starts

output:
  dir: {quoted(f"runs/{name}")}
"""
