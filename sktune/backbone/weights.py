"""Where a model's weights are read from, tensor by tensor: safetensors files here, a GGUF file in `gguf.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from sktune.backbone.gguf import GgufWeights
from sktune.backbone.model_files import find_gguf, not_loadable, unreadable_safetensors
from sktune.embedded import model_location
from sktune.errors import UserError
from sktune.library_internals import READ_WITHOUT_ERROR
from sktune.sections import ModelSection

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
MAPPED_BYTES = 2**28
"""Read before the files are opened anew: until then, the pages that were read count as the process's memory."""


class WeightSource(Protocol):
    """Tensors of a model by their names; nothing is read before it is asked for."""

    def names(self) -> list[str]:
        """Names of all tensors, in the spelling of transformers (of any of its versions)."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        ...

    def file(self, name: str) -> Path:
        """The file a tensor is in."""
        ...

    def check_is_float(self, name: str) -> None:
        """Refuses a tensor that cannot be read as floats.

        Raises:
            UserError: naming the tensor and its file.
        """
        ...

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A whole tensor, as memory of its own (not the file's)."""
        ...

    def rows(
        self, name: str, start: int, stop: int, *, transposed: bool, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Rows start to stop of a matrix; only they are read. `transposed`: of the stored one's transpose."""
        ...


def open_weights(model: ModelSection, network: PreTrainedModel) -> WeightSource:
    """The weights of the model that the recipe names; of a hub id, downloaded where they are not in the hub's cache.

    Args:
        model: names them.
        network: the skeleton they are for.

    Raises:
        UserError: where there are none, or they are damaged or not understood.
    """
    file = find_gguf(model.name_or_path, model.gguf_file, model.revision)
    return SafetensorsWeights(_find_safetensors(model)) if file is None else GgufWeights(file, network)


def weight_files(model: ModelSection) -> list[Path]:
    """The files that hold the weights of the model that the recipe names; raises as `open_weights` does."""
    file = find_gguf(model.name_or_path, model.gguf_file, model.revision)
    return _find_safetensors(model) if file is None else [file]


def weights_digest(model: ModelSection) -> str:
    """Hexadecimal digits that stand for the weights of the model that the recipe names, wherever its files lie.

    Of each file its size, its beginning and `_SAMPLES` more pieces are read: models of one shape differ everywhere.
    """
    found = hashlib.sha256()
    for file in weight_files(model):
        size = file.stat().st_size
        found.update(str(size).encode())
        with file.open("rb") as handle:
            for number in range(_SAMPLES + 1):
                handle.seek(max(0, size - _SAMPLE_BYTES) * number // _SAMPLES)
                found.update(handle.read(_SAMPLE_BYTES))
    return found.hexdigest()[:16]


_SAMPLES, _SAMPLE_BYTES = 16, 2**16


def _find_safetensors(model: ModelSection) -> list[Path]:
    """The files that hold the model's weights; of a hub id, downloaded into the hub's cache where they are not there.

    Raises:
        UserError: where there are none, or one of them is missing.
    """
    location = model_location(model.name_or_path)
    hub: dict[str, Any] = {"revision": model.revision}
    try:
        if single := cached_file(location, SINGLE, **hub, **READ_WITHOUT_ERROR):
            return [Path(single)]
        index = cached_file(location, INDEX, **hub, **READ_WITHOUT_ERROR)
        if index is None:
            raise OSError(f"it has neither {SINGLE} nor {INDEX}")
        files = [Path(file) for file in get_checkpoint_shard_files(location, index, **hub)[0]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(not_loadable(model.name_or_path, error)) from error
    for file in files:
        if not file.is_file():
            raise UserError(
                f"model.name_or_path: {INDEX} of {model.name_or_path!r} names {file.name}, which is not there; "
                "copy or download it again"
            )
    return files


class SafetensorsWeights:
    """Tensors of one or several safetensors files.

    Raises:
        UserError: for a truncated or damaged file, by its name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._handles: dict[Path, Any] = {}
        self._files: dict[str, Path] = {}
        self._mapped = 0
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"model.name_or_path: {unreadable_safetensors(file, error)}; download or copy it again"
                ) from error
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                self._files[name] = file
            self._handles[file] = handle

    def names(self) -> list[str]:
        return list(self._files)

    def _slice(self, name: str) -> Any:
        return self._handles[self._files[name]].get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def nbytes(self, name: str) -> int:
        wide = {"F64": 8, "F32": 4}.get(self._slice(name).get_dtype(), 2)
        return torch.Size(self.shape(name)).numel() * wide

    def check_is_float(self, name: str) -> None:
        """Refuses integers and 8-bit floats: weights that something else has quantized."""
        dtype = self._slice(name).get_dtype()
        if dtype not in FLOATS:
            raise UserError(
                f"model.name_or_path: {self.file(name)}: tensor {name} is {dtype}, not {', '.join(FLOATS)}: already "
                "quantized? give the original weights"
            )

    def file(self, name: str) -> Path:
        return self._files[name]

    def _count(self, read: torch.Tensor) -> None:
        self._mapped += read.nbytes
        if self._mapped > MAPPED_BYTES:
            self._handles = {file: safe_open(file, framework="pt") for file in self._handles}
            self._mapped = read.nbytes

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        stored: torch.Tensor = self._handles[self._files[name]].get_tensor(name)
        self._count(stored)
        return stored.to(device=device, dtype=dtype, copy=True)

    def rows(
        self, name: str, start: int, stop: int, *, transposed: bool, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        stored = self._slice(name)
        part: torch.Tensor = stored[:, start:stop].T if transposed else stored[start:stop]
        self._count(part)
        return part.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
