"""What a run ran on, as tags: versions, git commit, host, GPUs. Never the environment variables."""

from __future__ import annotations

import getpass
import platform
import subprocess
import sys
from collections import Counter
from importlib import metadata

from sktune.tracking import names

PACKAGES = ("sktune", "torch", "transformers", "deepspeed", "bitsandbytes", "accelerate", "mlflow")


def system_tags() -> dict[str, str]:
    """Tags of this process and host; a fact that cannot be had is left out."""
    tags = {f"{names.VERSION_PREFIX}python": platform.python_version(), names.HOST_TAG: platform.node()}
    for package in PACKAGES:
        version = _package_version(package)
        if version:
            tags[f"{names.VERSION_PREFIX}{package}"] = version
    optional = {
        names.GIT_COMMIT_TAG: git_commit(),
        names.GPUS_TAG: _gpu_names(),
        names.SOURCE_NAME_TAG: sys.argv[0] or None,
        names.USER_TAG: _user(),
    }
    return tags | {name: value for name, value in optional.items() if value}


def git_commit() -> str | None:
    """Commit checked out in the current folder, or None outside a checkout or without git."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # Run from a checkout that is not installed.
        return getattr(sys.modules.get(package), "__version__", None)


def _gpu_names() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    counts = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return None
