"""What `predict` has found, as a file: JSON lines, a table, or CoNLL columns."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sktune.errors import UserError
from sktune.files import whole

logger = logging.getLogger(__name__)

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


def read_kept(path: Path, key: str) -> list[dict[str, Any]]:
    """The answers that a command which was stopped has left in `partial_file(path)`, in order.

    Args:
        path: where the answers are to go.
        key: of all that they depend on.

    Raises:
        UserError: where what was kept belongs to something else.
    """
    partial = partial_file(path)
    if not partial.is_file():
        return []
    # A line that was cut off in the middle has no end.
    lines = [line for line in partial.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    if lines and json.loads(lines[0]) != {"answers_to": key}:
        raise UserError(
            f"--resume: {partial} was begun with other texts, options or another adapter; remove it, or give "
            "another --output"
        )
    kept = [json.loads(line) for line in lines[1:]]
    if lines:
        logger.info("%d answers are there from before: %s", len(kept), partial)
    return kept


def kept_until_whole(
    path: Path, key: str, kept: Sequence[Mapping[str, Any]], answers: Iterable[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """All answers; each is kept in `partial_file(path)` as it comes, for the caller to remove once they are written.

    Args:
        path: where the answers are to go.
        key: of all that they depend on.
        kept: the first of them, of a command that was stopped.
        answers: the others.
    """
    partial = partial_file(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for entry in ({"answers_to": key}, *kept):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        file.flush()
        yield from kept
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()
            yield answer


def partial_file(path: Path) -> Path:
    """Where answers are kept until all of them are there."""
    return path.with_name(f"{path.name}.partial")


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
