"""Takes named members out of a wheel (zip) or a source archive (tar)."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from sktune.errors import UserError

_CHUNK = 1 << 20  # bytes
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class _Member(NamedTuple):
    name: str
    is_file: bool
    content: Any  # opens it


def unpack(archive: Path, folder: Path, members: Mapping[str, str], limit: int) -> None:
    """Writes members of an archive to a folder; nothing else of it is read, and nothing outside the folder is written.

    Args:
        archive: a zip file or a (compressed) tar file.
        folder: exists.
        members: member, or folder of the archive with a closing slash -> file or folder (with a closing slash) below
            `folder`.
        limit: bytes written at most, all together.

    Raises:
        UserError: for a damaged archive, a member that is missing, is a link or a device, or leads out of the folder,
            and where the limit is exceeded.
    """
    found = set()
    left = limit
    try:
        with _opened(archive) as listed:
            for member in listed:
                wanted = next((key for key in members if _covers(key, member.name)), None)
                if wanted is None or (member.name.endswith("/") and not member.is_file):
                    continue
                inside = PurePosixPath(members[wanted] + member.name.removeprefix(wanted))
                if inside.is_absolute() or ".." in inside.parts or "\\" in str(inside) or not member.is_file:
                    raise UserError(f"{archive.name}: {member.name!r} is not a plain file below its folder")
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.content() as content, target.open("wb") as file:
                    left -= _copy(content, file, left)
                if left < 0:
                    raise UserError(f"{archive.name}: holds more than the {limit:,} bytes that were expected")
                found.add(wanted)
    except _DAMAGED as error:
        raise UserError(f"{archive.name} is damaged or no archive: {error}") from error
    if missing := [key for key in members if key not in found]:
        raise UserError(f"{archive.name} does not hold {', '.join(missing)}")


def _covers(key: str, name: str) -> bool:
    return name.startswith(key) if key.endswith("/") else name == key


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, in order, each to be read before the next one is asked for."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (
                # The upper half of a zip entry's attributes is its Unix mode, or 0 where it was written without one.
                _Member(i.filename, (i.external_attr >> 28) in (0, 8) and not i.is_dir(), lambda i=i: zipped.open(i))
                for i in zipped.infolist()
            )
    else:
        with tarfile.open(archive) as tar:
            yield (_Member(i.name + "/" * i.isdir(), i.isreg(), lambda i=i: tar.extractfile(i)) for i in tar)


def _copy(content: IO[bytes], file: IO[bytes], limit: int) -> int:
    """Copies at most a chunk more than `limit` bytes; returns how many."""
    copied = 0
    while copied <= limit and (chunk := content.read(_CHUNK)):
        file.write(chunk)
        copied += len(chunk)
    return copied
