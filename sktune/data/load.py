"""From a recipe to the raw splits of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sktune.data.agreement import check_known_labels, contradictions, outside_range, repeated_examples
from sktune.data.examples import Example, RawSplits, Reading
from sktune.data.files import local_folder, names_of
from sktune.data.labels import absent_labels, unseen_labels
from sktune.data.reading import Reader, read_split
from sktune.errors import UserError
from sktune.sections import DataSection


def load_splits(data: DataSection, task: Reader) -> RawSplits:
    """Read the splits that the recipe names.

    Sources are hub datasets, and local files in CoNLL columns, JSON lines, CSV, TSV or parquet; never a
    loading script, never a pickle. Rows without a label are dropped and counted; a test split without any
    label is dropped as a whole. The label set comes from the whole training split (or from the recipe);
    only then `data.max_*_samples` takes the first so many examples of each split, in the order of the file.

    Args:
        data: the recipe's section.
        task: reads the examples and says what the label set is.

    Raises:
        UserError: with one clear message on what is wrong where, and what to do.
    """
    folder = local_folder(data)
    report: list[str] = []
    train = _read(data, task, folder, "train", report)
    assert train is not None  # data.train cannot be null
    validation = _read(data, task, folder, "validation", report)
    test = _read(data, task, folder, "test", report)
    labels = task.label_set(train)
    train_examples = _first(train, data.max_train_samples, "train", report)
    if labels is not None:
        report += absent_labels(train_examples, labels)
        report += contradictions(train_examples, "train")
    held_out = {
        split: _kept(data, task, reading, labels, split, report, trained=train_examples)
        for split, reading in (("validation", validation), ("test", test))
        if reading is not None
    }
    return RawSplits(train_examples, held_out.get("validation"), held_out.get("test"), labels, report)


def load_for_evaluation(
    data: DataSection,
    task: Reader,
    split: str,
    labels: Sequence[str] | None,
    rename: Callable[[str], str] | None = None,
) -> RawSplits:
    """Read the one split that a trained adapter is scored on; the other files need not be there.

    Args:
        data: the recipe's section.
        task: reads the examples.
        split: `train`, `validation` or `test`.
        labels: the adapter's label set; None where it has none.
        rename: what the adapter calls a label of the data; None: the same.

    Raises:
        UserError: as `load_splits`, and where the recipe has no such split or none of its rows has a label.
    """
    names = names_of(getattr(data, split))
    if not names:
        raise UserError(f"--split: the recipe has no {split} data; name it with data.{split}=FILE_OR_SPLIT")
    report: list[str] = []
    reading = _read(data, task, local_folder(data), split, report)
    if reading is None:
        raise UserError(f"data.{split}: no row of {', '.join(names)} has a label, so there is nothing to score.")
    if rename is not None:
        reading = replace(reading, examples=[_renamed(example, rename) for example in reading.examples])
    kept = None if labels is None else tuple(labels)
    examples = _kept(data, task, reading, kept, split, report)
    return RawSplits(
        train=examples if split == "train" else [],
        validation=examples if split == "validation" else None,
        test=examples if split == "test" else None,
        labels=kept,
        report=report,
    )


def _renamed(example: Example, rename: Callable[[str], str]) -> Example:
    found = example.reference
    several = tuple(map(rename, found)) if isinstance(found, tuple) else found
    return replace(example, reference=rename(several) if isinstance(several, str) else several)


def _read(data: DataSection, task: Reader, folder: Path | None, split: str, report: list[str]) -> Reading | None:
    names = names_of(getattr(data, split))
    if not names:
        return None
    reading = read_split(data, task, folder, names, split)
    report.extend(reading.report)
    if reading.unlabelled and not reading.examples and split == "test":
        report.append(f"test: none of the {reading.unlabelled} rows has a label; the split is left out")
        return None
    if not reading.examples:
        raise UserError(
            f"data.{split}: no row of {reading.where} has a label"
            + ("." if split == "train" else f"; set data.{split} to null or to a labelled split.")
        )
    if reading.unlabelled:
        report.append(f"{split}: {reading.unlabelled} rows without a label dropped")
    return reading


def _kept(
    data: DataSection,
    task: Reader,
    reading: Reading,
    labels: tuple[str, ...] | None,
    split: str,
    report: list[str],
    trained: Sequence[Example] = (),
) -> list[Example]:
    """The examples of a split that is scored, after `data.max_*_samples`, in agreement with what was trained on."""
    examples = _first(reading, getattr(data, f"max_{split}_samples"), split, report)
    if labels is not None:
        check_known_labels(examples, labels, split, reading.where, words=task.reads_entities)
        report += unseen_labels(reading.examples, labels, split)
        report += contradictions(examples, split)
    report += outside_range(trained, examples, split)
    report += repeated_examples(trained, examples, split)
    return examples


def _first(reading: Reading, limit: int | None, split: str, report: list[str]) -> list[Example]:
    examples = reading.examples[:limit]
    first = f", the first of {len(reading.examples)}" if len(examples) < len(reading.examples) else ""
    report.append(f"{split}: {len(examples)} examples{first}, from {reading.where}")
    return examples
