"""Time of sktune's 4-bit linear layer against bitsandbytes' own, forward and backward, in one process.

    python benchmarks/linear_speed.py

Both layers hold the same nf4 codes (double quantization) and are timed in turn, many times, so that what else the
machine does meets both; the order within a pair alternates. Reported is the ratio of each pair (sktune / stock): its
median, and the quarters around it. The bar is a median of at most 1.05 for each shape. Runs on the GPU where there is
one (wall time), else on one thread of the CPU (its processor time, which leaves out waiting for a core), and says
which. Exits with 1 where the bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from sktune.backbone.quantized import FrozenLinear4bit

RESULT = Path(__file__).parent / "results" / "linear_speed.json"
SHAPES = ((2048, 2048), (5504, 2048), (4096, 4096))
"""(out_features, in_features)"""
TOKENS = (16, 256)
DTYPES = (torch.bfloat16, torch.float32)
BAR = 1.05
WARMUP = 3


def build(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """(sktune's layer, the stock one) with the same quantized random weight."""
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype, device=device) * 0.02
    own = FrozenLinear4bit(
        shape[1], shape[0], bias=False, dtype=dtype, quant_type="nf4", double_quant=True, compute_dtype=dtype
    )
    for name, tensor in own.pack([weight]).items():
        is_parameter = name in dict(own.named_parameters())
        setattr(own, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
    stock = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    stock.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    stock.to(device)  # quantizes
    stock.support_avx512bf16_for_cpu = False
    return own.to(device), stock


def time_once(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of one forward and backward: on the CPU, of its one thread."""
    x = x.detach().requires_grad_()
    if not x.is_cuda:
        begun = time.process_time()
        layer(x).backward(gradient)
        return time.process_time() - begun
    torch.cuda.synchronize(x.device)
    begun = time.perf_counter()
    layer(x).backward(gradient)
    torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun


def compare(
    shape: tuple[int, int], tokens: int, dtype: torch.dtype, pairs: int, device: torch.device
) -> dict[str, Any]:
    """Medians and ratios of a shape; checks first that both layers compute the same."""
    own, stock = build(shape, dtype, device)
    x = torch.randn(1, tokens, shape[1], dtype=dtype, device=device)
    gradient = torch.randn(1, tokens, shape[0], dtype=dtype, device=device)
    results = []
    for layer in (own, stock):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(gradient)
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
        for _ in range(WARMUP):
            time_once(layer, x, gradient)
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        order: tuple[int, ...] = (0, 1) if i % 2 == 0 else (1, 0)
        for which in order:
            seconds[which].append(time_once((own, stock)[which], x, gradient))
    ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "bit_identical": same,
        "pairs": pairs,
        "sktune_ms": 1e3 * statistics.median(seconds[0]),
        "stock_ms": 1e3 * statistics.median(seconds[1]),
        "ratio": middle,
        "ratio_quarter": low,
        "ratio_three_quarters": high,
        "holds": middle <= BAR,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="timed pairs of each shape")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    on_gpu = device.type == "cuda"
    result: dict[str, Any] = {
        "environment": {
            "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
            "seconds": "wall" if on_gpu else "processor",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "bitsandbytes")},
        },
        "bar": BAR,
        "cells": {},
    }
    print("| layer (out x in) | tokens | dtype | sktune ms | stock ms | ratio (quarters) | same bits | holds |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for tokens in TOKENS:
            for dtype in DTYPES:
                cell = compare(shape, tokens, dtype, options.pairs, device)
                size, kind = f"{shape[0]} x {shape[1]}", str(dtype).removeprefix("torch.")
                result["cells"][f"{size}, {tokens} tokens, {kind}"] = cell
                quarters = f"{cell['ratio_quarter']:.3f} to {cell['ratio_three_quarters']:.3f}"
                print(
                    f"| {size} | {tokens} | {kind} | {cell['sktune_ms']:.2f} | {cell['stock_ms']:.2f} "
                    f"| {cell['ratio']:.3f} ({quarters}) | {'yes' if cell['bit_identical'] else 'no'} "
                    f"| {'yes' if cell['holds'] else 'no'} |",
                    flush=True,
                )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(not all(cell["holds"] for cell in result["cells"].values()))


if __name__ == "__main__":
    sys.exit(main())
