"""Loading tensor by tensor: read, quantized and handed to its place before the next one is touched.

No rank, and no host, ever holds the model: one rank holds a packed tensor and the chunk that is being quantized, the
others the packed tensor, and each keeps its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from sktune.allocator import give_back_freed_memory
from sktune.backbone.placement import Placement
from sktune.backbone.quantized import FrozenLinear
from sktune.backbone.weight_names import match_weights
from sktune.backbone.weights import open_weights
from sktune.errors import UserError
from sktune.library_internals import is_saved
from sktune.progress import progress
from sktune.sections import ModelSection

CHUNK_ELEMENTS = 2**20
"""Numbers quantized at once: what a chunk and its temporaries take is some megabytes, whatever the layer's size."""


def stream_weights(network: PreTrainedModel, model: ModelSection, placement: Placement) -> None:
    """Fills a skeleton with the weights of its checkpoint; collective.

    Args:
        network: from `build_skeleton`; its parameters are replaced by real, frozen ones.
        model: names the checkpoint, and the dtype weights are cast to before they are quantized.
        placement: which rank reads, and where the tensors go.

    Raises:
        UserError: on all ranks, before anything is loaded: for files that are missing or truncated, and for tensors
            that are missing, already quantized or of another shape, by name.
    """
    weights = WeightStream(network, model, placement)
    with progress("loading weights", weights.nbytes, "B", shown=weights.nbytes is not None) as advance:
        weights.fill(network.named_modules(), advance)
    give_back_freed_memory()


class WeightStream:
    """The weights of a skeleton's checkpoint, to be put into it part by part; collective.

    Args, errors: of `stream_weights`.
    """

    def __init__(self, network: PreTrainedModel, model: ModelSection, placement: Placement) -> None:
        self._placement, self._reader, problem = placement, None, None
        if placement.reads:
            try:
                self._reader = _Reader(network, model, placement.device)
            except UserError as error:
                problem = str(error)
            except Exception as error:  # whatever it is, the other ranks must not wait
                problem = f"model.name_or_path: {model.name_or_path!r} cannot be read ({error!r}); are its files whole?"
        problem = placement.agree(problem)
        if problem is not None:
            raise UserError(problem)
        self.nbytes = self._reader.nbytes if self._reader else None
        """Of all that is read; None on ranks that do not read."""

    def fill(self, modules: Iterable[tuple[str, nn.Module]], advance: Callable[[int], None] = lambda _: None) -> None:
        """Gives modules, named as in the network, their own parameters and buffers, but not those of their parts."""
        if self._reader is not None:
            self._reader.advance = advance
        _fill(modules, self._reader, self._placement)


def _fill(modules: Iterable[tuple[str, nn.Module]], reader: _Reader | None, placement: Placement) -> None:
    placed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module_name, module in modules:
        packed: dict[str, torch.Tensor] = {}
        if reader and isinstance(module, FrozenLinear) and isinstance(module.weight, nn.Parameter):
            packed = reader.pack(module, module_name)
        for name, empty in list(module.named_parameters(recurse=False)):
            if id(empty) not in placed:
                value = packed.pop(name, None)
                if value is None and reader is not None:
                    value = reader.read(f"{module_name}.{name}".lstrip("."), empty.dtype)
                placed[id(empty)] = empty, placement.parameter(_or_empty(value, empty, placement.device))
                del value
            setattr(module, name, placed[id(empty)][1])  # tied ones are one parameter again
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, placement.buffer(_or_empty(packed.pop(name, None), buffer, placement.device)))
            elif not is_saved(module, name):
                setattr(module, name, buffer.to(placement.device))
            else:
                value = reader.read(f"{module_name}.{name}".lstrip("."), buffer.dtype, buffer) if reader else buffer
                setattr(module, name, placement.buffer(value.to(placement.device)))


def _or_empty(value: torch.Tensor | None, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device) if value is None else value


class _Reader:
    """The rank that reads: gives each tensor once, on the device, cast or packed."""

    def __init__(self, network: PreTrainedModel, model: ModelSection, device: torch.device) -> None:
        self.checkpoint = open_weights(model, network)
        self.names = match_weights(network, self.checkpoint, model.name_or_path)
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.device = device
        self.nbytes = sum(map(self.checkpoint.nbytes, set(self.names.values())))
        self.advance: Callable[[int], None]

    def read(self, name: str, dtype: torch.dtype, default: torch.Tensor | None = None) -> torch.Tensor:
        """A whole tensor; `default` where the checkpoint need not have it."""
        if name not in self.names:
            assert default is not None, name
            return default
        stored = self.names[name]
        self.advance(self.checkpoint.nbytes(stored))
        return self.checkpoint.tensor(stored, dtype, self.device)

    def pack(self, linear: FrozenLinear, module_name: str) -> dict[str, torch.Tensor]:
        """The quantized tensors of a layer."""
        return linear.pack(self._chunks(linear, self.names[f"{module_name}.weight"]))

    def _chunks(self, linear: FrozenLinear, stored: str) -> Iterator[torch.Tensor]:
        step = linear.rows_per_chunk(CHUNK_ELEMENTS)
        for start in range(0, linear.out_features, step):
            yield self.checkpoint.rows(
                stored, start, min(start + step, linear.out_features),
                transposed=linear.transposed, dtype=self.dtype, device=self.device,
            )  # fmt: skip
        self.advance(self.checkpoint.nbytes(stored))
