"""From a recipe to the raw splits of a run."""

from __future__ import annotations

from sktune.data.examples import Example, RawSplits, Reading
from sktune.data.files import local_folder
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

    def read(name: str | None, split: str) -> Reading | None:
        if name is None:
            return None
        reading = read_split(data, task, folder, name, split)
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

    train = read(data.train, "train")
    assert train is not None  # data.train cannot be null
    validation = read(data.validation, "validation")
    test = read(data.test, "test")

    labels = task.label_set(train)
    if labels is not None:
        for split, reading in (("validation", validation), ("test", test)):
            if reading is not None:
                report += unseen_labels(reading.examples, labels, split)

    def kept(reading: Reading | None, split: str, limit: int | None) -> list[Example] | None:
        if reading is None:
            return None
        examples = reading.examples[:limit]
        first = f", the first of {len(reading.examples)}" if len(examples) < len(reading.examples) else ""
        report.append(f"{split}: {len(examples)} examples{first}, from {reading.where}")
        return examples

    train_examples = kept(train, "train", data.max_train_samples) or []
    if labels is not None:
        report += absent_labels(train_examples, labels)
    return RawSplits(
        train=train_examples,
        validation=kept(validation, "validation", data.max_validation_samples),
        test=kept(test, "test", data.max_test_samples),
        labels=labels,
        report=report,
    )
