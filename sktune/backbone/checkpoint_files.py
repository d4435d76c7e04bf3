"""A model's safetensors files, single or sharded, in a folder or the hub's cache, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from sktune.embedded import model_location
from sktune.sections import ModelSection

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


def find_weights(model: ModelSection) -> list[Path]:
    """The files that hold the model's weights; of a hub id, downloaded into the hub's cache where they are not there.

    Raises:
        ValueError: where there are none, or one of them is missing.
    """
    location = model_location(model.name_or_path)
    hub: dict[str, Any] = {"revision": model.revision}
    quiet = {"_raise_exceptions_for_missing_entries": False}
    try:
        if single := cached_file(location, SINGLE, **hub, **quiet):
            return [Path(single)]
        index = cached_file(location, INDEX, **hub, **quiet)
        if index is None:
            raise OSError(f"it has neither {SINGLE} nor {INDEX}")
        files = [Path(file) for file in get_checkpoint_shard_files(location, index, **hub)[0]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(not_loadable(model.name_or_path, error)) from error
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"model.name_or_path: {INDEX} of {model.name_or_path!r} names {file.name}, which is not there; "
                "copy or download it again"
            )
    return files


class Checkpoint:
    """Tensors of several safetensors files by their names; nothing is read before it is asked for.

    Raises:
        ValueError: for a truncated or damaged file, by its name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._handles: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"model.name_or_path: {file} is truncated or damaged ({error}); download or copy it again"
                ) from error
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                self._handles[name] = handle
                self._files[name] = file

    def names(self) -> list[str]:
        """Names of all tensors, as the files spell them."""
        return list(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handles[name].get_slice(name).get_shape())

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        wide = {"F64": 8, "F32": 4}.get(self._handles[name].get_slice(name).get_dtype(), 2)
        return torch.Size(self.shape(name)).numel() * wide

    def check_is_float(self, name: str) -> None:
        """Refuses integers and 8-bit floats: weights that something else has quantized.

        Raises:
            ValueError: naming the tensor and its file.
        """
        dtype = self._handles[name].get_slice(name).get_dtype()
        if dtype not in FLOATS:
            raise ValueError(
                f"model.name_or_path: {self.file(name)}: tensor {name} is {dtype}, not {', '.join(FLOATS)}: already "
                "quantized? give the original weights"
            )

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors of one shape hold the same numbers."""
        stored = (self._handles[name].get_slice(name) for name in (one, other))
        first, second = stored
        rows = first.get_shape()[0] if first.get_shape() else 0
        return all(torch.equal(first[i : i + 1024], second[i : i + 1024]) for i in range(0, rows, 1024))

    def file(self, name: str) -> Path:
        """The file a tensor is in."""
        return self._files[name]

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A whole tensor, as memory of its own (not the file's)."""
        stored: torch.Tensor = self._handles[name].get_tensor(name)
        return stored.to(device=device, dtype=dtype, copy=True)

    def rows(
        self, name: str, start: int, stop: int, *, transposed: bool, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Rows start to stop of a matrix; only they are read. `transposed`: of the stored one's transpose."""
        stored = self._handles[name].get_slice(name)
        part: torch.Tensor = stored[:, start:stop].T if transposed else stored[start:stop]
        return part.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def not_loadable(name: str, error: Exception) -> str:
    """The message about a model that cannot be had, with what to do."""
    folder = Path(model_location(name))
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        return (
            f"model.name_or_path: {name!r} holds only .bin weights, which are pickle and are never loaded; convert "
            "them once with `save_pretrained` of transformers in an environment you trust"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "trust_remote_code" in str(error):
        return (
            f"model.name_or_path: {name!r} comes with code of its own, which does not run unless you say so; "
            "read it and set model.trust_remote_code: true if you trust it"
        )
    return (
        f"model.name_or_path: {name!r} cannot be loaded: {first_line}; give a hub id you have access to "
        "(HF_TOKEN for gated ones) or a local folder with config.json and *.safetensors"
    )
