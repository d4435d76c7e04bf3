"""Counts the bytes of tensors that a process holds, and the bytes that its collectives gather.

Two instruments read the same moments. The registry remembers every storage that any operation of PyTorch returned, by
a weak reference, and asks at a moment which of them still live: tensors that only autograd holds in C++ count, and so
do those whose Python objects are gone. The allocator's events (torch.profiler) count every allocation and every free,
also inside kernels and between moments, and give the peaks. Both count tensors and not the process: mapped files,
Python's objects and code are outside.

    python benchmarks/sharding_meter.py      # checks both against allocations of known size
"""

from __future__ import annotations

import argparse
import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sktune.allocator import give_back_freed_memory
from sktune.distributed.ranks import Ranks, start_ranks

MARK = "moment "


class StorageRegistry(TorchDispatchMode):
    """Every storage that an operation of this thread returned, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self._weak: dict[int, Any] = {}  # address of a storage's record -> weak pointer, which keeps it unique

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.remember(leaf)
        return result

    def remember(self, tensor: torch.Tensor) -> None:
        """Adds the tensor's storage, where it is not known."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weak:
            self._weak[storage._cdata] = storage._weak_ref()

    def live_bytes(self) -> int:
        """Bytes of all storages that something still holds; mapped files are left out."""
        gc.collect()
        for found in gc.get_objects():
            # Made by other threads or from a file: an operation of this thread never returned it.
            # By type(): isinstance would wake up lazy objects that have nothing to do with tensors.
            if issubclass(type(found), torch.Tensor) and found.device.type != "meta":
                self.remember(found)
        total, mapped = 0, _mapped_files()
        for storage in self._living():
            if not any(low <= storage.data_ptr() < high for low, high in mapped):
                total += storage.nbytes()
        return total

    def forget_the_dead(self) -> None:
        """Drops the records of storages that are gone: small as they are, they keep the heap from being reused."""
        for _ in self._living():
            pass
        give_back_freed_memory()

    def _living(self) -> Iterator[torch.UntypedStorage]:
        for address, weak in list(self._weak.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            if storage is None:
                torch.UntypedStorage._free_weak_ref(weak)
                del self._weak[address]
            else:
                yield storage


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of the weight files that this process has mapped."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(".safetensors"):
            low, high = line.split(maxsplit=1)[0].split("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges


@dataclass
class Reading:
    """Bytes at a moment."""

    name: str
    registry: int
    allocator: int = 0
    """By the allocator's events: what the registry found at the moment before, and the changes since."""
    peak: int = 0
    """The most that the allocator's events tell since the moment before."""
    gathered: int = 0
    """Bytes that all-gathers have put out since the moment before."""


class Collectives:
    """Stands in the place of torch.distributed's tensor collectives, to be called before DeepSpeed looks them up.

    It counts what all-gathers put out. And it waits until the communication thread has let go of the tensors: where
    that thread is the last to hold one, the free would be invisible to the allocator's events of this thread.
    """

    gathers = ("all_gather_into_tensor", "all_gather_single", "all_gather")
    others = ("all_reduce", "broadcast", "reduce", "reduce_scatter_tensor", "reduce_scatter_single", "reduce_scatter")

    def __init__(self) -> None:
        self.gathered = 0
        for name in (*self.gathers, *self.others):
            if hasattr(dist, name):
                setattr(dist, name, self._observed(getattr(dist, name), counts=name in self.gathers))

    def _observed(self, collective: Callable[..., Any], counts: bool) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Any:
            if counts:
                output = args[0] if args else kwargs.get("output_tensor", kwargs.get("tensor_list"))
                self.gathered += sum(tensor.nbytes for tensor in tree_leaves(output))
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            holders = [_use_count(tensor) for tensor in tensors]
            work = collective(*args, **{**kwargs, "async_op": True})
            if work is not None:
                work.wait()
                del work
            deadline = time.monotonic() + 5
            while [_use_count(tensor) for tensor in tensors] != holders and time.monotonic() < deadline:
                time.sleep(0)
            time.sleep(5e-4)  # its last references go after those that are counted
            return _Done() if kwargs.get("async_op") else None

        return observed


def _use_count(tensor: Any) -> int:
    return int(tensor._use_count())


class _Done:
    """What stands for a collective that has ended."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class Meter:
    """Reads moments between `start` and `stop`; one per process, started before anything is allocated.

    Args:
        collectives: whose counter is read; None: there are none.
    """

    def __init__(self, collectives: Collectives | None = None) -> None:
        self.readings: list[Reading] = []
        self.collectives = collectives

    def start(self, mapped: Iterable[Path] = ()) -> None:
        """Begins to count. Events of mapping the files `mapped` are no allocations."""
        self._mapped = {file.stat().st_size for file in mapped}
        self._held = self._peak = 0
        self._registry = StorageRegistry()
        self._begin_events()
        self._registry.__enter__()

    def moment(self, name: str) -> None:
        """Reads the bytes that are held now; what only the garbage collector would find is collected first."""
        reading = Reading(name, self._registry.live_bytes())
        if self.collectives is not None:
            reading.gathered, self.collectives.gathered = self.collectives.gathered, 0
        with record_function(f"{MARK}{len(self.readings)}"):
            self.readings.append(reading)

    def forget_events(self) -> None:
        """Counts the events so far and drops them: those of loading billions of weights would fill the memory."""
        self._registry.forget_the_dead()
        self._count_events()
        self._begin_events()

    def stop(self) -> list[Reading]:
        """Ends counting; the readings, in order."""
        self._registry.__exit__(None, None, None)
        self._count_events()
        return self.readings

    def _begin_events(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()

    def _count_events(self) -> None:
        self._profile.stop()
        results: Any = self._profile.profiler
        events = sorted(
            (
                (event.start_ns(), event.name(), event.nbytes())
                for event in results.kineto_results.events()
                if event.name() == "[memory]" or event.name().startswith(MARK)
            ),
            key=lambda event: event[0],
        )
        for _, name, size in events:
            if name != "[memory]":
                reading = self.readings[int(name.removeprefix(MARK))]
                reading.allocator, reading.peak = self._held, self._peak
                self._held = self._peak = reading.registry  # what was missed is not carried on
            elif abs(size) not in self._mapped:
                self._held += size
                self._peak = max(self._peak, self._held)
        del self._profile


def check() -> dict[str, dict[str, int]]:
    """What both instruments say of allocations of known size: by moment, expected, registry, allocator and peak."""
    meter = Meter()
    meter.start()
    meter.moment("nothing")
    x = torch.ones(1000, 1000, requires_grad=True)
    meter.moment("a leaf of 1000 x 1000 fp32")
    y = (x * 2).exp().sum()  # exp keeps its result, which nothing in Python holds
    meter.moment("and the result that only autograd holds, and a scalar")
    (x.detach() @ x.detach()).add_(1)
    meter.moment("a product that was there and is gone")
    y.backward()
    meter.moment("after backward, with the gradient")
    x.grad = None
    x.untyped_storage().resize_(0)
    meter.moment("a storage that was emptied in place, as ZeRO does")
    del x, y
    expected = [0, 4_000_000, 8_000_004, 8_000_004, 8_000_004, 4]
    peaks = [0, 4_000_000, 12_000_000, 12_000_004, 12_000_004, 8_000_004]
    return {
        reading.name: {
            "expected": wanted,
            "registry": reading.registry,
            "allocator": reading.allocator,
            "expected_peak": peak,
            "peak": reading.peak,
        }
        for reading, wanted, peak in zip(meter.stop(), expected, peaks, strict=True)
    }


def begin_cell(description: str | None) -> tuple[Path, Meter, Ranks]:
    """What every measured process does first: (its job file, a meter, its place among the ranks)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--local_rank", help="deepspeed passes it")
    path: Path = parser.parse_args().job
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return path, Meter(Collectives()), start_ranks(3600)


if __name__ == "__main__":
    for name, numbers in check().items():
        print(f"{name}: {numbers}")
