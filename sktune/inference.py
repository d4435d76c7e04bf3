"""Using a trained adapter: scores of a split, and answers to new texts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sktune.data import Example, Row
from sktune.data.questions import Question
from sktune.data.tags import OUTSIDE
from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import EVALUATION_FOLDER, write_whole
from sktune.model.adapter import adapter_folder, read_adapter, read_recipe
from sktune.model.tuned_model import put_weights
from sktune.progress import progress
from sktune.recipe import LoadedRecipe
from sktune.tasks.task import Answers, Task
from sktune.training.evaluate import evaluate, model_inputs
from sktune.training.output import kept_folder
from sktune.training.report import write_predictions
from sktune.training.setup import Setup, build_engine, prepare
from sktune.writing import GREEDILY, Writing, prompt_of, write

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def load_trained(
    output: Path, ranks: Ranks, overrides: Sequence[str] = (), scored: str | None = None
) -> tuple[LoadedRecipe, Setup]:
    """Rebuilds a trained model from its output folder; overrides change the recipe it was trained with.

    `scored` names the split to read; None reads no data that is to be answered.
    """
    folder = adapter_folder(output)
    loaded = read_recipe(folder, overrides, reads_data=scored is not None)
    weights, labels = read_adapter(folder)
    setup = prepare(loaded.recipe, ranks, labels=labels, read_data=False, scored=scored)
    put_weights(setup.model, weights, str(folder))
    return loaded, setup


def evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a trained adapter on a split of its data; writes `evaluation/<split>.json` and the predictions.

    The folder is kept to this command meanwhile.

    Returns:
        The metrics, and `per_type` for token classification.

    Raises:
        UserError: for an unknown split, one that the recipe does not name, or a folder in use.
    """
    if split not in SPLITS:
        raise UserError(f"--split: {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    adapter_folder(output)
    with kept_folder(output, ranks):
        return _evaluate_run(output, split, ranks, overrides)


def _evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str]) -> dict[str, Any]:
    _, setup = load_trained(output, ranks, overrides, scored=split)
    assert setup.raw is not None
    engine, _ = build_engine(setup, ranks)
    return score(setup, engine, getattr(setup.raw, split), split, ranks, output / EVALUATION_FOLDER / split)


def score(
    setup: Setup,
    engine: Engine,
    examples: Sequence[Example],
    split: str,
    ranks: Ranks,
    place: Path,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores examples and writes the result, `<place>.json`, and the predictions; collective.

    Args:
        setup: of a trained adapter.
        engine: runs its model.
        examples: of a split.
        split: its name, for what is logged.
        ranks: share the rows.
        place: of the files, without an ending.
        about: what the result says besides its metrics, before them.

    Returns:
        The result: `about`, the metrics, and `per_type` where there are types.
    """
    rows = setup.encode_for_scoring(examples, split)
    assert rows is not None
    scores = evaluate(setup, engine, rows, ranks)
    result = {**(about or {}), **scores.metrics, **({"per_type": scores.per_type} if scores.per_type else {})}
    if ranks.is_main:
        write_predictions(scores, examples, place.with_name(f"{place.name}.predictions.jsonl"))
        write_whole(place.with_name(f"{place.name}.json"), json.dumps(result, indent=1))
    ranks.barrier()
    return result


class Answer(dict[str, Any]):
    """An answer, JSON-ready; the attribute `line` says the same in words, for a terminal."""

    def __init__(self, line: str, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.line = line


def predict(
    output: Path,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    ranks: Ranks,
    overrides: Sequence[str] = (),
    writing: Writing = GREEDILY,
) -> Iterator[Answer]:
    """Answers to texts; see `answer`.

    Args:
        output: the run's folder.
        texts: for token classification, words separated by spaces.
        pairs: second texts, for tasks on pairs.
        ranks: this process, alone.
        overrides: changes of the recipe.
        writing: how a language model answers.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise UserError("--text-pair: give one --text-pair for each --text")
    second: Sequence[str | None] = pairs or [None] * len(texts)
    questions = [
        Question(f"text {number}", None, text, pair)
        for number, (text, pair) in enumerate(zip(texts, second, strict=True), start=1)
    ]
    return answer(output, questions, ranks, overrides, writing)


def answer(
    output: Path,
    questions: Sequence[Question],
    ranks: Ranks,
    overrides: Sequence[str] = (),
    writing: Writing = GREEDILY,
) -> Iterator[Answer]:
    """Answers to questions, in order, in the words of the training data.

    Texts are read in batches of similar length (`training.per_device_eval_batch_size`).

    Args:
        output: the run's folder.
        questions: of the command line, or of a file; see `sktune.data.questions`.
        ranks: this process, alone.
        overrides: changes of the recipe.
        writing: how a language model answers.

    Yields:
        `text`, of a file's its `line`, of a pair `text_pair`, and what the task shows: `words`, `tags` and `entities`;
        `label` and `probabilities`; `value`; `generated` ...

    Raises:
        UserError: for a missing or superfluous second text, a text of the command line without words where words are
            tagged, and where the output folder holds no adapter.
    """
    loaded, setup = load_trained(output, ranks, overrides)
    paired = loaded.recipe.data.text_pair_column is not None
    if any(paired != (question.text_pair is not None) for question in questions):
        kind, need = ("pairs", "one --text-pair for each --text") if paired else ("single texts", "no --text-pair")
        raise UserError(f"--text-pair: this adapter was trained on {kind}; give {need}")
    if writing != GREEDILY and not setup.task.config.new_tokens:
        raise UserError("--temperature, --max-new-tokens and the like: this adapter answers without writing a text")
    torch.manual_seed(writing.seed)
    setup.model.to(ranks.device).eval()
    size = loaded.recipe.training.per_device_eval_batch_size
    notes = Notes()
    # Answers that are printed on the terminal show by themselves how far it is.
    shown = not sys.stdout.isatty()
    with torch.no_grad(), progress("predicting", len(questions), "texts", shown=shown) as advance:
        for start in range(0, len(questions), size * BATCHES_SORTED):
            for question, found in _answered(
                setup, questions[start : start + size * BATCHES_SORTED], size, notes, writing
            ):
                entries = {"line": question.line, "text": question.text, "text_pair": question.text_pair}
                entries = {key: value for key, value in entries.items() if value is not None}
                yield Answer(f"{question.text}\n  -> {setup.task.line(found)}", {**entries, **found})
                advance(1)
    notes.log()


BATCHES_SORTED = 32
"""Batches whose texts are sorted by length among each other."""


class Notes:
    """What was noticed of texts: at once where they are few, counted for a file."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, question: Question, report: Sequence[str]) -> None:
        for line in report:
            if question.line is None:
                logger.warning(line)
            else:
                what = line.removeprefix(f"{question.place}: 1 of 1 ")
                self._places.setdefault(what, []).append(question.place)

    def log(self) -> None:
        for what, places in self._places.items():
            first = ", ".join(places[:5]) + (" ..." if len(places) > 5 else "")
            logger.warning("%d %s: %s", len(places), what, first)


def _answered(
    setup: Setup, questions: Sequence[Question], size: int, notes: Notes, writing: Writing
) -> Iterator[tuple[Question, dict[str, Any]]]:
    """Questions with what their task shows, in order."""
    task, groups = setup.task, list[tuple[Example, list[Row]]]()
    count = 0
    for question in questions:
        example = example_of(task, question.text, question.text_pair, question.words)
        if task.reads_words and not example.words and question.line is None:
            raise UserError(f"--text: {question.text!r} has no words")
        encoded = setup.encode([example], question.place, scoring=True)
        notes.add(question, encoded.report)
        rows = [replace(row, index=count + number) for number, row in enumerate(encoded.rows)]
        count += len(rows)
        groups.append((example, rows))
    answers: Answers = {}
    writes = task.config.new_tokens > 0
    rows = sorted((row for _, rows in groups for row in rows), key=lambda row: -row.length)
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        if writes:
            texts = write(setup, [prompt_of(row) for row in batch], writing)
            answers |= {row.index: text for row, text in zip(batch, texts, strict=True)}
        else:
            answers |= answers_of(setup, batch)
    for question, (example, rows) in zip(questions, groups, strict=True):
        shown = {"generated": answers[rows[0].index]} if writes else task.shown(example, rows, answers, setup.labels)
        yield question, shown


def example_of(task: Task, text: str, pair: str | None, words: Sequence[str] | None) -> Example:
    """What a task is asked about: a text, a pair, or a sentence that came as words (where the task tags them)."""
    example = task.example(text, pair)
    return example if words is None else replace(example, words=tuple(words), reference=(OUTSIDE,) * len(words))


def answers_of(setup: Setup, rows: Sequence[Row]) -> Answers:
    """The answers to rows of one batch, by a model in this process."""
    batch = setup.collator(rows)
    output = setup.model(**model_inputs(batch, setup.model.backbone.base.device))
    return setup.task.answers(output, rows, batch["attention_mask"].argmax(1).tolist(), setup.labels)
