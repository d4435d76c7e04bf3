"""What the numbers of the benchmark are held against, and the plan beside what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharding_model import write_model, write_recipe

MB = 1_000_000
PLAN_TOLERANCE = 0.05
PEAK_BELOW, PEAK_ABOVE = 0.05, 0.12
"""A planned peak is at most so much lower or higher than the measured one: too low, and what fits does not."""
PEAK_FROM = 50e6
"""Bytes from which a peak has that bar: of the small form's 2.5 MB, 0.3 MB that no plan counts are 14 percent."""
SAME_TOLERANCE = 1e-5
LIVE_LIMIT = {4: 130 * MB, 8: 225 * MB}
GATHERED_LIMIT = {4: 0.29, 8: 0.53}
MODES = ("off", "on")

Bar = dict[str, Any]


def cell_name(ranks: int, bits: int, stack: str) -> str:
    """Name of a measured cell."""
    return f"{ranks} ranks/{bits} bits/{stack}"


def bars(cells: dict[str, Any], full_size: bool) -> list[Bar]:
    """Every bar whose cells are there: what, measured, limit, stock's number where there is one, and `holds`.

    `bytes` marks those that are exact byte counts.
    """
    found = [*_losses(cells), *_plan(cells)]
    return [*_bytes(cells), *found] if full_size else found


def _bar(what: str, measured: Any, limit: Any, holds: bool, *, stock: Any = None, exact: bool = False) -> Bar:
    return {"what": what, "measured": measured, "limit": limit, "stock": stock, "bytes": exact, "holds": bool(holds)}


def _done(cells: dict[str, Any], name: str) -> dict[str, Any] | None:
    cell = cells.get(name)
    return cell if cell is not None and cell["status"] == "finished" else None


def _bytes(cells: dict[str, Any]) -> Iterator[Bar]:
    plain = _done(cells, cell_name(2, 16, "sktune"))
    for bits in (4, 8, 16):
        cell, stock = (_done(cells, cell_name(2, bits, stack)) for stack in ("sktune", "stock"))
        if cell is None:
            continue
        if bits in LIVE_LIMIT:
            live, theirs = (None if c is None else max(c["off"]["live"]["after_forward"]) for c in (cell, stock))
            assert live is not None
            what = f"{bits} bits: live bytes between forward and backward"
            yield _bar(what, live, LIVE_LIMIT[bits], live <= LIVE_LIMIT[bits], stock=theirs, exact=True)
        limit = max(cell["own_shard"]) + cell["largest_unquantized_tensor"] + 10 * MB
        peak = max(cell["load_peak"])
        theirs = None if stock is None else max(stock["load_peak"])
        what = f"{bits} bits: highest live bytes while loading; own share, one unquantized tensor and 10 MB"
        yield _bar(what, peak, limit, peak <= limit, stock=theirs, exact=True)
        if bits in GATHERED_LIMIT and plain is not None:
            share = cell["off"]["gathered_per_forward"] / plain["off"]["gathered_per_forward"]
            what = f"{bits} bits: bytes gathered per forward, as a share of bf16's"
            yield _bar(what, share, GATHERED_LIMIT[bits], share <= GATHERED_LIMIT[bits], exact=True)


def _losses(cells: dict[str, Any]) -> Iterator[Bar]:
    cell, stock = (_done(cells, cell_name(2, 4, stack)) for stack in ("sktune", "stock"))
    if cell is not None and stock is not None:
        differing = sum(a != b for a, b in zip(cell["losses"], stock["losses"], strict=True))
        what = f"4 bits: losses of {len(cell['losses'])} steps that are not the stock layers' to the last bit"
        yield _bar(what, differing, 0, differing == 0)
    pair = _done(cells, "8 bits in fp32")
    if pair is not None:
        ours, reference = (pair[stack]["losses"] for stack in ("sktune", "reference"))
        difference = largest_difference(ours, reference)
        what = f"8 bits: largest relative difference of {len(ours)} losses to an unsharded fp32 model of the same codes"
        yield _bar(what, difference, 1e-3, difference <= 1e-3)
    for bits in (4, 8, 16):
        cell = _done(cells, cell_name(2, bits, "sktune"))
        if cell is not None:
            difference = cell["gradients"]["largest_difference_after_evaluation"]
            what = f"{bits} bits: largest difference of a gradient before and after an evaluation pass"
            yield _bar(what, difference, 0.0, difference == 0 and cell["gradients"]["norm"] > 0)
    same = [_done(cells, f"same results/{ranks} ranks") for ranks in (1, 2, 3)]
    if all(cell is not None for cell in same):
        one, *others = (cell for cell in same if cell is not None)
        for job in (key for key in one if key != "status"):
            losses = [[*cell[job]["losses"], cell[job]["evaluation_loss"]] for cell in (one, *others)]
            difference = max(largest_difference(other, losses[0]) for other in losses[1:])
            agree = all(cell[job]["predicted"] == one[job]["predicted"] for cell in others)
            what = f"{job}: largest relative difference of losses and evaluation on 1, 2 and 3 ranks"
            yield _bar(what, difference, SAME_TOLERANCE, difference <= SAME_TOLERANCE and agree)


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Largest |a - b| / |b|."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def _plan(cells: dict[str, Any]) -> Iterator[Bar]:
    for name, cell in cells.items():
        for mode in MODES:
            planned = cell.get(mode, {}).get("plan", {}).get("live")
            if planned:
                errors = {m: planned[m] / max(cell[mode]["live"][m]) - 1 for m in planned}
                worst = max(errors, key=lambda moment: abs(errors[moment]))
                what = f"{name}, checkpointing {mode}: the plan's largest error ({worst})"
                holds = abs(errors[worst]) <= PLAN_TOLERANCE
                yield _bar(what, errors[worst], PLAN_TOLERANCE, holds, exact=True)
                errors = _peak_errors(cell, mode)
                if max(cell[mode]["peak"]["evaluation"]) < PEAK_FROM:
                    continue
                for pick, which, limit in ((min, "lowest", -PEAK_BELOW), (max, "highest", PEAK_ABOVE)):
                    peak = pick(errors, key=errors.__getitem__)
                    what = f"{name}, checkpointing {mode}: the plan's {which} peak ({peak})"
                    holds = -PEAK_BELOW <= errors[peak] <= PEAK_ABOVE
                    yield _bar(what, errors[peak], limit, holds, exact=True)


def _peak_errors(cell: dict[str, Any], mode: str) -> dict[str, float]:
    planned, measured = cell[mode]["plan"], cell[mode]["peak"]
    step = max(max(measured[phase]) for phase in ("forward", "backward", "step"))
    return {
        "loading": planned["load_peak"] / max(cell["load_peak"]) - 1,
        "training": planned["training_peak"] / step - 1,
        "evaluation": planned["evaluation_peak"] / max(measured["evaluation"]) - 1,
    }


def compare_plan(cells: dict[str, Any], shape: dict[str, int]) -> None:
    """Puts the plan of each of sktune's measured cells beside its measured bytes; reads no weights."""
    from sktune.planning import plan
    from sktune.recipe import load_recipe

    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder) / "model", Path(folder) / "recipe.yaml"
        write_model(model, shape, weights=False)
        for name, cell in cells.items():
            if not name.endswith("bits/sktune") or cell["status"] != "finished":
                continue
            ranks, bits = (int(part.split()[0]) for part in name.split("/")[:2])
            for mode in MODES:
                write_recipe(path, model, bits, checkpointing=mode == "on")
                planned = plan(load_recipe(path), ranks=ranks)
                cell[mode]["plan"] = {
                    "live": dict(planned.live),
                    "load_peak": planned.load_peak,
                    "training_peak": planned.training_peak,
                    "evaluation_peak": planned.evaluation_peak,
                    "gathered_per_forward": planned.gathered_per_forward,
                    "gathered_per_step": planned.gathered_per_step,
                }
