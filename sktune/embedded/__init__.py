"""The embedded default: a small pretrained LLaMA and small data sets, so that a recipe runs without a hub."""

from __future__ import annotations

from pathlib import Path

PREFIX = "embedded:"
ROOT = Path(__file__).parent
FOLDERS = {
    "llama": ROOT / "model",
    "newswire": ROOT / "data" / "newswire",
    "sentiment": ROOT / "data" / "sentiment",
    "entailment": ROOT / "data" / "entailment",
}


def is_embedded(name: str) -> bool:
    """True where a recipe's model or data name speaks of something shipped with the package."""
    return name.startswith(PREFIX)


def resolve(name: str) -> Path:
    """The folder behind an `embedded:...` name.

    Raises:
        ValueError: the name is none of the shipped ones, or its folder is missing from the installation.
    """
    allowed = ", ".join(PREFIX + key for key in FOLDERS)
    folder = FOLDERS.get(name.removeprefix(PREFIX)) if is_embedded(name) else None
    if folder is None:
        raise ValueError(f"{name!r} is not an embedded model or data set; allowed: {allowed}")
    if not folder.is_dir():
        raise ValueError(
            f"{name!r} should be in {folder}, which does not exist; rebuild it with `python -m sktune.embedded.build`"
        )
    return folder


def model_location(name: str) -> str:
    """A folder for `embedded:` names; hub ids and folders as they are."""
    return str(resolve(name)) if is_embedded(name) else name
