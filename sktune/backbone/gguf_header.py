"""The header of a GGUF file: its metadata and where its tensors lie, without reading any of them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` reads it too, but makes several
numpy arrays for each token of the vocabulary: seconds, and a hundred megabytes.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from sktune.errors import UserError

VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of the tensors, where the file names no other."""
_SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


class StoredTensor(NamedTuple):
    """Where a tensor lies in the file, and how its numbers are packed."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    """As torch orders it: columns last, each row in whole blocks."""
    start: int
    """Its first byte, from the start of the file."""
    nbytes: int


class Header(NamedTuple):
    """What a GGUF file says before its tensors."""

    fields: dict[str, Any]
    """Metadata; in place of an array (a vocabulary, say) its length."""
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        UserError: where the file is not one, of another byte order or version, truncated, or damaged; without the
            recipe's field, which the caller knows.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise _damaged(path, "it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Reader(path, content).header()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ArithmeticError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise _damaged(path, f"its header is not whole: {error!r}") from error
    for name, tensor in header.tensors.items():
        if tensor.start + tensor.nbytes > size:
            raise _damaged(path, f"tensor {name} ends at byte {tensor.start + tensor.nbytes} and the file at {size}")
    return header


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is truncated or damaged ({what}); download or copy it again")


class _Reader:
    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.position = 4

    def header(self) -> Header:
        if self.content[:4] != b"GGUF":
            raise UserError(f"{self.path} is not a GGUF file: it does not begin with the letters GGUF")
        version = self.scalar("I")
        if version & 0xFFFF == 0:
            raise UserError(
                f"{self.path} is a GGUF file for big-endian machines; give a little-endian one "
                "(`gguf-convert-endian FILE little` of the package gguf rewrites it)"
            )
        if version not in VERSIONS:
            raise UserError(
                f"{self.path} is GGUF version {version}; 2 and 3 can be read: convert the model again with a current "
                "llama.cpp"
            )
        tensor_count, field_count = self.scalar("Q"), self.scalar("Q")
        fields = {self.text(): self.value(self.scalar("I")) for _ in range(field_count)}
        places = [self.place() for _ in range(tensor_count)]
        alignment = fields.get("general.alignment", ALIGNMENT)
        data = -(-self.position // alignment) * alignment
        tensors = {name: self.tensor(name, shape, kind, data + offset) for name, shape, kind, offset in places}
        if len(tensors) < tensor_count:
            raise _damaged(self.path, "two of its tensors have the same name")
        return Header(fields, tensors)

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        self.position += length
        return self.content[self.position - length : self.position].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, length = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            self.position += length * struct.calcsize(_SCALARS[inner])
        elif inner == GGUFValueType.STRING:
            for _ in range(length):
                self.position += 8 + struct.unpack_from("<Q", self.content, self.position)[0]
        else:
            for _ in range(length):
                self.value(inner)
        return length

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, kind, and its offset from the first tensor."""
        name = self.text()
        dimensions = [self.scalar("Q") for _ in range(self.scalar("I"))]  # columns first
        return name, tuple(reversed(dimensions)), self.scalar("I"), self.scalar("Q")

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
        if kind not in {int(known) for known in GGMLQuantizationType}:
            raise _damaged(self.path, f"tensor {name} is of the kind {kind}, which the package gguf does not know")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or 0 in shape or shape[-1] % block:
            raise _damaged(self.path, f"tensor {name} has the shape {list(shape)}, in blocks of {block}")
        return StoredTensor(GGMLQuantizationType(kind), shape, start, math.prod(shape) // block * block_bytes)
