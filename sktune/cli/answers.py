"""What `predict` has found, as a file: JSON lines, a table, or CoNLL columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sktune.errors import UserError
from sktune.files import whole

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".conll")


def check_output(path: Path, *, words: bool) -> None:
    """Refuses a file that answers cannot be written to.

    Args:
        path: of `--output`.
        words: whether the answers are tags of words.

    Raises:
        UserError: for an unknown ending, and one that does not suit the task.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"--output: {path} has no known ending; allowed: {', '.join(ENDINGS)}")
    if ending == ".conll" and not words:
        raise UserError(f"--output: {path} would hold tagged words, and this adapter gives none; use .jsonl or .csv")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file")


def write_answers(answers: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Writes answers in their order, the file whole or not at all; returns their number.

    CSV and TSV have a column for each probability (`probabilities.pos`) and lists as JSON, but for words and tags,
    which are separated by blanks; CoNLL a word and its tag a line, `_` for a word that was not read.
    """
    ending, count = path.suffix.lower(), 0
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer: Any = None
        for answer in answers:
            count += 1
            if ending in (".jsonl", ".json"):
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            elif ending == ".conll":
                tagged = zip(answer["words"], answer["tags"], strict=True)
                file.write("".join(f"{word}\t{tag or '_'}\n" for word, tag in tagged) + "\n")
            else:
                row = dict(_flat(answer))
                if writer is None:
                    dialect = "excel-tab" if ending == ".tsv" else "excel"
                    writer = csv.DictWriter(file, row, dialect=dialect, lineterminator="\n", extrasaction="ignore")
                    writer.writeheader()
                writer.writerow(row)
    return count


def _flat(answer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in answer.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", item) for name, item in value.items())
        elif key in ("words", "tags"):
            yield key, " ".join(item or "_" for item in value)
        elif isinstance(value, list):
            yield key, json.dumps(value, ensure_ascii=False)
        else:
            yield key, value
