"""CoNLL column files: one word per line, its tag in one of the columns, a blank line between sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sktune.data.tags import is_entity_tag
from sktune.data.text_files import ending, read_lines
from sktune.errors import UserError

CONLL_U = ".conllu"


@dataclass(frozen=True, slots=True)
class Sentence:
    """The words and tags of one sentence, as written in the file."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_conll(
    path: Path,
    word_column: int | None = None,
    tag_column: int | None = None,
    encoding: str | None = None,
    *,
    entities: bool = True,
) -> list[Sentence]:
    """Read the sentences of a CoNLL file.

    The first line that is neither blank, a `-DOCSTART-` line nor begins with `#` decides for the whole
    file: if it holds a tab, columns are separated by single tabs (so a word may contain any other white
    space), else by runs of spaces; and every line must have as many columns as it has. A line that begins
    with `# ` (or is just `#`) and has another number of columns is a comment, as in CoNLL-U; with that
    number it is the word `#`. Of a CoNLL-U file (`.conllu`) the lines of whole tokens (`1-2`) and of words that are
    not in the text (`1.1`) are left out.

    Args:
        path: the file.
        word_column: index of the column that holds the word; negative counts from the end; None: 0, of CoNLL-U 1.
        tag_column: index of the column that holds the tag; likewise; None: -1, of CoNLL-U 3.
        encoding: as `data.encoding`.
        entities: whether tags must be of a scheme of entities.

    Raises:
        UserError: naming file and line, for bytes that are not of the encoding, a line with another number of
            columns, a column that is not there, or a tag of no known scheme.
    """
    lines = read_lines(path, encoding)
    tabs, count = _layout(lines)
    word_column, tag_column = _columns_of(path, word_column, tag_column)
    _check_columns(path, count, word_column, tag_column)
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []

    def end_sentence() -> None:
        if words:
            sentences.append(Sentence(tuple(words), tuple(tags)))
            words.clear()
            tags.clear()

    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            end_sentence()
            continue
        columns = _columns(line, tabs)
        if _is_no_word(path, columns):
            continue
        if len(columns) != count:
            if line.startswith("# ") or line == "#":
                continue
            raise UserError(
                f"{path}:{number}: {len(columns)} columns where the file's first line has {count} "
                f"({'tab' if tabs else 'space'}-separated): {line!r}. Give every line the same columns."
            )
        tag = columns[tag_column].strip()
        if entities and not is_entity_tag(tag):
            raise UserError(
                f"{path}:{number}: {tag!r} is no tag of IOB1, IOB2, BIOES or BILOU (O, B-TYPE, I-TYPE ...). "
                f"data.conll_tag_column ({tag_column}) must name the tag's column; a header line must go; tags "
                "that are no entities, such as parts of speech, need task.scheme: plain."
            )
        words.append(columns[word_column])
        tags.append(tag)
    end_sentence()
    return sentences


def read_words(
    path: Path, word_column: int | None = None, encoding: str | None = None
) -> Iterator[tuple[int, tuple[str, ...] | UserError]]:
    """(number of its first line, words) of each sentence of a CoNLL file, tagged or not, or what is wrong with it.

    A file may also have a word a line and nothing else.

    Args:
        path: the file.
        word_column: index of the column that holds the word; negative counts from the end.
        encoding: as `data.encoding`.

    Raises:
        UserError: for bytes that are not of the encoding, and for a column that is not there.
    """
    lines = read_lines(path, encoding)
    tabs, count = _layout(lines)
    word_column, _ = _columns_of(path, word_column, None)
    if count and not -count <= word_column < count:
        raise UserError(f"{path}: data.conll_word_column is {word_column}, but the file has {count} columns.")
    start, words, wrong = 0, list[str](), None
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if start:
                yield start, wrong or tuple(words)
            start, words, wrong = 0, [], None
            continue
        columns = _columns(line, tabs)
        if _is_no_word(path, columns):
            continue
        if len(columns) != count and (line.startswith("# ") or line == "#"):
            continue
        start = start or number
        if len(columns) != count:
            wrong = wrong or UserError(
                f"{path}:{number}: {len(columns)} columns where the file's first line has {count}"
            )
        else:
            words.append(columns[word_column])


def _columns_of(path: Path, word: int | None, tag: int | None) -> tuple[int, int]:
    standard = (1, 3) if ending(path) == CONLL_U else (0, -1)
    return standard[0] if word is None else word, standard[1] if tag is None else tag


def _is_no_word(path: Path, columns: list[str]) -> bool:
    return ending(path) == CONLL_U and not columns[0].isdigit() and columns[0].replace("-", ".").count(".") == 1


def _columns(line: str, tabs: bool) -> list[str]:
    # only the ASCII blank separates: a no-break space belongs to its word
    return line.split("\t") if tabs else [column for column in line.split(" ") if column]


def _layout(lines: list[str]) -> tuple[bool, int]:
    content = [line for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    first = next((line for line in content if not line.startswith("#")), content[0] if content else "")
    tabs = "\t" in first
    return tabs, len(_columns(first, tabs))


def _check_columns(path: Path, count: int, word_column: int, tag_column: int) -> None:
    if not count:
        return  # an empty file: its reader says so
    for field, column in (("conll_word_column", word_column), ("conll_tag_column", tag_column)):
        if not -count <= column < count:
            raise UserError(f"{path}: data.{field} is {column}, but the file has {count} columns (0 to {count - 1}).")
    if word_column % count == tag_column % count:
        raise UserError(
            f"{path}: word and tag would both come from column {word_column % count} of {count}. Set "
            "data.conll_word_column and data.conll_tag_column; a CoNLL file has at least two columns."
        )
