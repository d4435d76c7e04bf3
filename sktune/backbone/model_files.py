"""What a recipe's model name points at: safetensors, a GGUF file, or something else, with the cure for it."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils.hub import cached_file

from sktune.embedded import model_location, must_be_here
from sktune.errors import UserError

GGUF = ".gguf"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
ADAPTER_CONFIG = "adapter_config.json"
"""Of peft."""


def find_gguf(
    name: str, file_name: str | None, revision: str | None, *, field: str = "model.name_or_path"
) -> Path | None:
    """The GGUF file that a name stands for; None for a folder or a hub repository of safetensors.

    Args:
        name: a `.gguf` file, a folder, or a hub id; a folder that holds one `.gguf` file and no other weights is that
            file.
        file_name: the recipe's `model.gguf_file`, inside the folder or the repository.
        revision: the hub's.
        field: of the recipe, for messages.

    Raises:
        UserError: for a file that is not there, another kind of file, and several GGUF files to choose from.
    """
    place = Path(model_location(name))
    if place.is_file() and place.suffix == GGUF:
        return place
    if place.is_file():
        raise UserError(
            f"{field}: {name!r} is a single {place.suffix or 'nameless'} file; give the folder that holds it together "
            "with config.json and the tokenizer, or a .gguf file"
        )
    if place.suffix == GGUF and not place.is_dir():
        raise UserError(f"{field}: there is no file {name!r}; give the path of a .gguf file")
    if must_be_here(name) and not place.is_dir():
        raise UserError(f"{field}: there is no folder {name!r}; give the folder of a model, a .gguf file, or a hub id")
    if file_name is not None:
        return _inside(name, file_name, revision)
    weights = [".safetensors", *PICKLES]
    if not place.is_dir() or any(file.suffix in weights for file in place.iterdir()):
        return None
    files = sorted(place.glob(f"*{GGUF}"))
    if len(files) > 1:
        raise UserError(
            f"{field}: {name!r} holds {len(files)} .gguf files; say which with model.gguf_file: {_listed(files)}"
        )
    return files[0] if files else None


def _inside(name: str, file_name: str, revision: str | None) -> Path:
    place = Path(model_location(name))
    if place.is_dir() and not (place / file_name).is_file():
        raise UserError(
            f"model.gguf_file: {name!r} holds no file {file_name!r}; its .gguf files: "
            f"{_listed(sorted(place.glob(f'*{GGUF}')))}"
        )
    try:
        return Path(str(cached_file(str(place), file_name, revision=revision)))
    except (OSError, ValueError) as error:
        raise UserError(not_loadable(name, error)) from error


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "") if files else "none"


def unreadable_safetensors(file: Path, error: Exception) -> str:
    """Why a safetensors file cannot be read, in one line; what else it is, where it is a pickle by that name."""
    try:
        with file.open("rb") as handle:
            start = handle.read(4)
    except OSError as own:
        return f"{file} cannot be read ({own.strerror})"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return (
            f"{file} is a pickle under another name (torch.save writes them): reading one can run code, so it is never "
            "read; ask for safetensors"
        )
    return f"{file} is truncated or damaged and cannot be read ({' '.join(str(error).split())})"


def not_loadable(name: str, error: Exception) -> str:
    """The message about a model that cannot be had, with what to do."""
    return _other_kind(name) or _why(name, error)


def _other_kind(name: str) -> str | None:
    """What a local folder without safetensors holds instead of a model that can be loaded."""
    folder = Path(model_location(name))
    if not folder.is_dir():
        return None
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"model.name_or_path: {name!r} is a PEFT adapter, not a model; give the model it was trained on"
            f"{_base_of(folder)}, or a folder with both merged (peft: merge_and_unload, then save_pretrained)"
        )
    names = {file.name for file in folder.iterdir()}
    if any(other.startswith("consolidated") for other in names):
        return (
            f"model.name_or_path: {name!r} holds a model in the format of its makers (consolidated.*), which "
            "transformers does not read; give its version for transformers (of Llama-2-7b: meta-llama/Llama-2-7b-hf), "
            "or convert it once with transformers' convert_*_weights_to_hf.py"
        )
    if not any(other.endswith(".safetensors") for other in names):
        for ending in PICKLES:
            if any(other.endswith(ending) for other in names):
                return (
                    f"model.name_or_path: {name!r} holds only {ending} weights, which are pickle and are never loaded; "
                    "convert them once with `save_pretrained` of transformers in an environment you trust"
                )
    return None


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" ({base})" if base else ""


def _why(name: str, error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "trust_remote_code" in str(error):
        return (
            f"model.name_or_path: {name!r} comes with code of its own, which does not run unless you say so; "
            "read it and set model.trust_remote_code: true if you trust it"
        )
    return (
        f"model.name_or_path: {name!r} cannot be loaded: {first_line}; give a hub id you have access to "
        "(HF_TOKEN for gated ones), a local folder with config.json and *.safetensors, or a .gguf file"
    )
