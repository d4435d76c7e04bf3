"""Text files as they are found: compressed or not, in UTF-8 or what the recipe says, lines ended in any way."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

from sktune.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def ending(path: Path) -> str:
    """What a file's name says of its format: `.csv` of `train.csv` and of `train.csv.gz`."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def read_text(path: Path, encoding: str | None = None) -> str:
    """The whole text of a file, decompressed where its name ends in .gz, without byte order mark.

    Args:
        path: the file.
        encoding: as `data.encoding`; None: what a byte order mark says, UTF-8 without one.

    Raises:
        UserError: naming the file, and for bytes that are not of the encoding the line.
    """
    raw = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: is no whole gzip file ({error}); write it again, or unpack it") from None
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    if encoding is None and marked is None and b"\0" in raw:
        # Latin letters in UTF-16 are valid UTF-8, with a NUL after each.
        raise UserError(
            f"{path} holds NUL bytes, as UTF-16 without a byte order mark does; set data.encoding to utf-16-le or "
            "utf-16-be, or write the file again"
        )
    try:
        return raw.decode(chosen).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        advice = f"set data.encoding (latin-1, cp1252 ...), or convert it: iconv -f latin1 -t utf-8 {path.name}"
        raise UserError(f"{path}:{number}: byte 0x{raw[error.start]:02x} is not {chosen.upper()}; {advice}") from None
    except LookupError:
        raise UserError(
            f"data.encoding: {chosen!r} is no encoding that Python knows; utf-8, latin-1, cp1252, utf-16 ..."
        ) from None


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """The lines of a text file, without line ends (only newlines end a line); see `read_text`."""
    # not str.splitlines: it also cuts at U+2028, U+0085 and the like, which do occur inside words
    return re.split(r"\r\n|\r|\n", read_text(path, encoding))
