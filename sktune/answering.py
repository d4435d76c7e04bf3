"""Answers of a trained adapter to new texts, in batches of similar length; on one process or on several ranks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sktune.inference import load_trained
from sktune.progress import progress
from sktune.tasks.task import Answers, Task
from sktune.training.evaluate import model_inputs
from sktune.training.setup import Setup, build_engine
from sktune.writing import GREEDILY, Writing, prompt_of, write

logger = logging.getLogger(__name__)


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
    as_written: Callable[[str], None] | None = None,
) -> Iterator[Answer]:
    """Answers to texts; see `answer`.

    Args:
        output: the run's folder.
        texts: for token classification, words separated by spaces.
        pairs: second texts, for tasks on pairs.
        ranks: this process and the others.
        overrides: changes of the recipe.
        writing: how a language model answers.
        as_written: is given what is written, piece by piece.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise UserError("--text-pair: give one --text-pair for each --text")
    second: Sequence[str | None] = pairs or [None] * len(texts)
    questions = [
        Question(f"text {number}", None, text, pair)
        for number, (text, pair) in enumerate(zip(texts, second, strict=True), start=1)
    ]
    return answer(output, questions, ranks, overrides, writing, as_written)


def answer(
    output: Path,
    questions: Sequence[Question],
    ranks: Ranks,
    overrides: Sequence[str] = (),
    writing: Writing = GREEDILY,
    as_written: Callable[[str], None] | None = None,
) -> Iterator[Answer]:
    """Answers to questions, in order, in the words of the training data; the same on every rank.

    Texts are read in batches of similar length (`training.per_device_eval_batch_size`), each by one rank.

    Args:
        output: the run's folder.
        questions: of the command line, or of a file; see `sktune.data.questions`.
        ranks: this process and the others; all of them take every answer.
        overrides: changes of the recipe.
        writing: how a language model answers.
        as_written: is given each question and what is written to it, piece by piece, one question at a time; of an
            adapter that writes nothing, the answer. For one process.

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
    engine, _ = build_engine(setup, ranks)
    engine.set_training(False)
    reader = _Reader(setup, engine, ranks, writing, as_written)
    sorted_together = 1 if as_written else reader.batch_size * BATCHES_SORTED
    # Answers that are printed on the terminal show by themselves how far it is.
    shown = not sys.stdout.isatty()
    with torch.no_grad(), progress("predicting", len(questions), "texts", shown=shown) as advance:
        for start in range(0, len(questions), sorted_together):
            for question, found in reader.answered(start, questions[start : start + sorted_together]):
                entries = {"line": question.line, "text": question.text, "text_pair": question.text_pair}
                entries = {key: value for key, value in entries.items() if value is not None}
                yield Answer(f"{_asked(question)}{setup.task.line(found)}", {**entries, **found})
                advance(1)
    reader.notes.log()


def _asked(question: Question) -> str:
    """The question and an arrow, for a terminal; its answer follows."""
    return f"{question.text}\n  -> "


BATCHES_SORTED = 32
"""Batches whose texts are sorted by length among each other, on however many ranks."""


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


class _Reader:
    """Reads questions with a trained model, on all ranks together."""

    def __init__(
        self,
        setup: Setup,
        engine: Engine,
        ranks: Ranks,
        writing: Writing,
        as_written: Callable[[str], None] | None,
    ) -> None:
        self.setup, self.engine, self.ranks, self.writing, self.as_written = setup, engine, ranks, writing, as_written
        self.batch_size = setup.recipe.training.per_device_eval_batch_size
        self.writes = setup.task.config.new_tokens > 0
        self.notes = Notes()

    def answered(self, start: int, questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        """Questions with what their task shows, in order; the first is number `start` of all."""
        task = self.setup.task
        groups: list[tuple[Example, list[Row]]] = []
        count = 0
        for question in questions:
            example = example_of(task, question.text, question.text_pair, question.words)
            if task.reads_words and not example.words and question.line is None:
                raise UserError(f"--text: {question.text!r} has no words")
            encoded = self.setup.encode([example], question.place, scoring=True)
            self.notes.add(question, encoded.report)
            rows = [replace(row, index=count + number) for number, row in enumerate(encoded.rows)]
            count += len(rows)
            groups.append((example, rows))
        if self.as_written is not None:
            self.as_written(_asked(questions[0]))
        answers = self._read(start, [row for _, rows in groups for row in rows])
        for question, (example, rows) in zip(questions, groups, strict=True):
            if self.writes:
                shown = {"generated": answers[rows[0].index]}
            else:
                shown = task.shown(example, rows, answers, self.setup.labels)
                if self.as_written is not None:
                    self.as_written(task.line(shown))
            if self.as_written is not None:
                self.as_written("\n")
            yield question, shown

    def _read(self, start: int, rows: Sequence[Row]) -> Answers:
        """Answers to all rows, by their numbers; in each pass every rank reads a batch of its own."""
        rows = sorted(rows, key=lambda row: -row.length)
        batches = [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        answers: Answers = {}
        for first in range(0, len(batches), self.ranks.world_size):
            together = batches[first : first + self.ranks.world_size]
            has_own = self.ranks.rank < len(together)
            # A rank without a batch reads the first one too: under ZeRO-3 all of them take part in every pass.
            batch = together[self.ranks.rank if has_own else 0]
            found = self._write(start, batch) if self.writes else answers_of(self.setup, batch, self.engine)
            answers |= found if has_own else {}
        everything: Answers = {}
        for part in self.ranks.gather(answers):
            everything |= part
        return everything

    def _write(self, start: int, rows: Sequence[Row]) -> Answers:
        if self.writing.temperature > 0:
            # By the batch, so that what is drawn does not depend on the number of ranks.
            torch.manual_seed(self.writing.seed * 1_000_003 + start + rows[0].index)
        prompts = [prompt_of(row) for row in rows]
        texts = write(self.setup, prompts, self.writing, generate=self.engine.generate, as_written=self.as_written)
        return {row.index: text for row, text in zip(rows, texts, strict=True)}


def example_of(task: Task, text: str, pair: str | None, words: Sequence[str] | None) -> Example:
    """What a task is asked about: a text, a pair, or a sentence that came as words (where the task tags them)."""
    example = task.example(text, pair)
    return example if words is None else replace(example, words=tuple(words), reference=(OUTSIDE,) * len(words))


def answers_of(setup: Setup, rows: Sequence[Row], run: Callable[..., Any] | None = None) -> Answers:
    """The answers to rows of one batch.

    Args:
        setup: of a trained adapter.
        rows: to be read together.
        run: reads a batch; None: the model, which is whole in this process.
    """
    batch = setup.collator(rows)
    output = (run or setup.model)(**model_inputs(batch, setup.model.backbone.base.device))
    return setup.task.answers(output, rows, batch["attention_mask"].argmax(1).tolist(), setup.labels)
