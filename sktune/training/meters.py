"""Honest meters: tokens per second of whole training steps, memory peaks, and bytes of the frozen share."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from torch import nn

from sktune.distributed.ranks import Ranks

Batch = dict[str, torch.Tensor]
WARMUP_STEPS = 3
"""Steps not timed: allocator, kernel choice and ZeRO's trace settle in them."""


class ThroughputMeter:
    """Counts samples and tokens of timed steps; evaluation, checkpoints and the first steps are outside."""

    def __init__(self, ranks: Ranks, train_seconds: float = 0.0, real_tokens: int = 0) -> None:
        self.ranks = ranks
        self.steps = 0
        self.train_seconds = train_seconds  # of all steps, those of an earlier part of the run included
        self.total_real_tokens = real_tokens
        self._timed = [0.0] * 5  # seconds, of them those waited for data, samples, real tokens, padded tokens

    @contextmanager
    def step(self, read: Callable[[], Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """Times one optimizer step of this rank, from asking for its batches, which it gives, to the update."""
        self._synchronize()
        start = time.perf_counter()
        batches = read()
        waited = time.perf_counter() - start
        yield batches
        self._synchronize()
        seconds = time.perf_counter() - start
        samples = sum(int(batch["valid"].sum()) for batch in batches)
        real_tokens = sum(int(batch["attention_mask"][batch["valid"]].sum()) for batch in batches)
        padded_tokens = sum(batch["attention_mask"].numel() for batch in batches)  # real ones too
        self.steps += 1
        self.train_seconds += seconds
        self.total_real_tokens += real_tokens
        if self.steps > WARMUP_STEPS:
            for i, value in enumerate((seconds, waited, samples, real_tokens, padded_tokens)):
                self._timed[i] += value

    def _synchronize(self) -> None:
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)

    def rates(self) -> dict[str, float]:
        """Rates since the first timed step, over all ranks together and per rank; empty before it. Collective.

        `data_wait_share` is the part of the time in which ranks waited for their batches.
        """
        seconds, waited, *counts = self.ranks.sum(self._timed)
        if seconds == 0:
            return {}
        mean_seconds = seconds / self.ranks.world_size
        names = ("samples_per_second", "real_tokens_per_second", "padded_tokens_per_second")
        rates = {name: count / mean_seconds for name, count in zip(names, counts, strict=True)}
        per_rank = {f"{name}_per_rank": rate / self.ranks.world_size for name, rate in rates.items()}
        return {**rates, **per_rank, "data_wait_share": waited / seconds}


def reset_peak_memory(device: torch.device) -> None:
    """Starts the peaks anew: the GPU's, and on Linux the process's resident one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # elsewhere a process has one peak for its whole life
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_in_use(device: torch.device) -> dict[str, float]:
    """This rank's bytes at this moment: the process's resident memory, and the GPU's allocated."""
    used = {"resident_bytes": float(psutil.Process().memory_info().rss)}
    if device.type == "cuda":
        used["gpu_allocated_bytes"] = float(torch.cuda.memory_allocated(device))
    return used


def peak_memory(device: torch.device) -> dict[str, float]:
    """This rank's peaks in bytes: GPU allocated and reserved, and the process's resident memory."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peaks = {"resident_peak_bytes": float(resident)}
    if device.type == "cuda":
        peaks["gpu_allocated_peak_bytes"] = float(torch.cuda.max_memory_allocated(device))
        peaks["gpu_reserved_peak_bytes"] = float(torch.cuda.max_memory_reserved(device))
    return peaks


def frozen_bytes(backbone: nn.Module) -> int:
    """Bytes of the backbone that this rank holds at rest: shards or whole tensors, packed weights and scales."""
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    tensors = [tensor for p in frozen for tensor in (p.data, getattr(p, "ds_tensor", None))]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*tensors, *backbone.buffers())
        if tensor is not None and tensor.numel()
    }
    return sum(storages.values())
