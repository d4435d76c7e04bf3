"""One launch of the benchmark on all ranks; `sharding.py` starts it with `deepspeed`.

    deepspeed --num_gpus 2 benchmarks/sharding_cell.py job.json

Rank 0 writes what was measured beside the job, as `job.result.json`.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
# Threads are outside what the allocator's events tell.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sharding_meter import Meter, Reading, begin_cell
from sharding_model import LABELS, batch, write_recipe
from sharding_stock import assemble_around, load_reference, load_stock

from sktune.distributed.engine import Engine
from sktune.distributed.ranks import Ranks, leave_ranks
from sktune.recipe import load_recipe
from sktune.training.checkpoint import Progress, save_checkpoint
from sktune.training.meters import frozen_bytes
from sktune.training.setup import Setup, build_engine, prepare

STEPS_BEFORE = 3
"""Steps before the measured one: ZeRO-3 learns the order of the modules in them, and the first one reads the text."""
GRADIENT_SEED, EVALUATION_SEED = 1000, 2000


class Cell:
    """A model on an engine, and the moments of its life."""

    def __init__(self, job: dict[str, Any], ranks: Ranks, meter: Meter | None = None) -> None:
        self.job, self.ranks, self.meter = job, ranks, meter
        self.rows: int = job["rows"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            model = Path(job["model"])
            write_recipe(path, model, job["bits"], dtype=job["dtype"], rows=self.rows // ranks.world_size)
            self.recipe = load_recipe(path)
        self.moment("nothing")
        self.assembly = self._assemble()
        self.moment("loaded")
        self.engine: Engine = build_engine(self.assembly, ranks)[0]
        self.moment("after_load")
        self.losses: list[float] = []

    def _assemble(self) -> Setup:
        if self.job["stack"] == "sktune":
            return prepare(self.recipe, self.ranks, labels=LABELS, read_data=False)
        if self.job["stack"] == "stock":
            return assemble_around(load_stock(self.recipe), self.recipe, self.ranks, LABELS)
        network = load_reference(Path(self.job["model"]), Path(self.job["codes"]))
        return assemble_around(network, self.recipe, self.ranks, LABELS)

    def moment(self, name: str) -> None:
        if self.meter is not None:
            self.meter.moment(name)

    def _batch(self, seed: int) -> dict[str, Any]:
        return batch(seed, self.rows, self.ranks.rank, self.ranks.world_size)

    def step(self, seed: int, rate: float = 1.0) -> dict[str, torch.Tensor]:
        """Forward, backward, update; returns the gathered gradients where nothing is updated (rate 0)."""
        self.engine.set_rate(rate)
        self.moment("before")
        output = self.engine(**self._batch(seed))
        assert output.loss is not None
        self.moment("after_forward")
        self.engine.backward(output.loss)
        self.moment("after_backward")
        gradients = self._gradients() if rate == 0 else {}
        self.engine.step()
        self.moment("after_step")
        if rate:
            self.losses += self.ranks.sum([float(output.loss.detach())])
        return gradients

    def _gradients(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p).clone() for name, p in self.assembly.model.trainable_parameters().items()}

    @torch.no_grad()
    def evaluate(self, seed: int = EVALUATION_SEED) -> tuple[float, list[list[int]]]:
        """(mean loss, predicted labels of every row) of one global batch."""
        self.engine.set_training(False)
        output = self.engine(**self._batch(seed))
        self.engine.set_training(True)
        assert output.loss is not None and output.logits is not None
        (loss,) = self.ranks.sum([float(output.loss)])
        parts = self.ranks.gather(output.logits.argmax(-1).tolist())
        return loss, [row for part in parts for row in part]

    def checkpoint(self) -> None:
        """Gathers and saves as training does; the moment is while everything is held."""
        weights, moments = self.engine.weights(), self.engine.optimizer_state()
        with tempfile.TemporaryDirectory() as folder:
            if self.ranks.is_main:
                save_checkpoint(Path(folder), weights, moments, Progress(), 1)
            self.moment("at_checkpoint")
            self.ranks.barrier()

    def in_the_middle(self) -> None:
        """Reads a moment when the middle block has run in evaluation, and when backward comes to it in training."""
        blocks = self.assembly.model.backbone.blocks

        def reached(module: Any, args: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            if self.assembly.model.training and hidden.requires_grad:
                hidden.register_hook(lambda gradient: self.moment("in_backward"))
            elif not self.assembly.model.training:
                self.moment("in_evaluation")

        blocks[len(blocks) // 2].register_forward_hook(reached)


def measure(job: dict[str, Any], ranks: Ranks, meter: Meter) -> dict[str, Any]:
    """Bytes of a cell in all moments, without and with checkpointing; then losses and gradients, unobserved."""
    meter.start(Path(job["model"]).glob("*.safetensors"))
    cell = Cell(job, ranks, meter)
    backbone = cell.assembly.model.backbone
    shard = frozen_bytes(backbone)
    cell.in_the_middle()
    ends = []
    for checkpointing in (False, True):
        backbone.gradient_checkpointing = checkpointing
        for _ in range(STEPS_BEFORE + 1):
            cell.step(len(cell.losses))
        meter.moment("before_evaluation")
        evaluation = cell.evaluate()[0]
        meter.moment("after_evaluation")
        cell.checkpoint()
        ends.append((len(meter.readings), evaluation))
    readings = meter.stop()
    cell.meter = None
    with safe_open(Path(job["model"]) / "model.safetensors", "pt") as file:
        largest = max(torch.Size(file.get_slice(key).get_shape()).numel() * 2 for key in file.keys())  # noqa: SIM118
    result: dict[str, Any] = {
        "load_peak": ranks.gather(max(readings[1].peak, readings[2].peak)),
        "own_shard": ranks.gather(shard) if job["stack"] == "sktune" else None,
        "largest_unquantized_tensor": largest,
        "instruments_differ_by": max(ranks.gather(max(abs(r.registry - r.allocator) for r in readings))),
        "trainable_parameters": cell.assembly.model.parameter_counts()[0],
    }
    begin = 3
    for mode, (end, evaluation) in zip(("off", "on"), ends, strict=True):
        result[mode] = _mode(readings[begin:end], readings[2], ranks) | {"evaluation_loss": evaluation}
        begin = end
    if job["steps"]:
        while len(cell.losses) < job["steps"]:
            cell.step(len(cell.losses))
        before = cell.step(GRADIENT_SEED, rate=0.0)
        cell.evaluate()
        after = cell.step(GRADIENT_SEED, rate=0.0)
        result["gradients"] = {
            "norm": float(sum(g.double().square().sum() for g in before.values())) ** 0.5,
            "largest_difference_after_evaluation": max(float((before[n] - after[n]).abs().max()) for n in before),
        }
    result["losses"] = cell.losses
    return result


def _mode(readings: list[Reading], loaded: Reading, ranks: Ranks) -> dict[str, Any]:
    """Numbers of the last step, evaluation and checkpoint among the readings; lists are by rank."""
    last = {reading.name: reading for reading in [loaded, *readings]}
    step = [last[name] for name in ("after_forward", "in_backward", "after_backward", "after_step")]
    moments = ("after_load", "after_forward", "in_backward", "after_backward", "after_step")
    peaks = {
        "forward": step[0].peak,
        "backward": max(step[1].peak, step[2].peak),
        "step": step[3].peak,
        "evaluation": max(last["in_evaluation"].peak, last["after_evaluation"].peak),
        "checkpoint": last["at_checkpoint"].peak,
    }
    everything = (*moments, "in_evaluation", "at_checkpoint")
    return {
        "live": {name: ranks.gather(last[name].registry) for name in everything},
        "peak": {name: ranks.gather(value) for name, value in peaks.items()},
        "gathered_per_forward": max(ranks.gather(step[0].gathered)),
        "gathered_per_step": max(ranks.gather(sum(reading.gathered for reading in step))),
    }


def train(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Losses of `steps` steps and an evaluation.

    8-bit codes are written to job["codes"], where it names a file; with them the main rank alone trains the reference.
    """
    if job["stack"] == "reference":
        if not ranks.is_main:
            return {}
        ranks = Ranks(0, 0, 1, ranks.device, launched=False)
    cell = Cell(job, ranks)
    if job["stack"] == "sktune" and "codes" in job:
        _write_codes(cell, Path(job["codes"]))
    cell.assembly.model.backbone.gradient_checkpointing = False
    while len(cell.losses) < job["steps"]:
        cell.step(len(cell.losses))
    loss, predicted = cell.evaluate()
    return {"losses": cell.losses, "evaluation_loss": loss, "predicted": predicted}


def _write_codes(cell: Cell, path: Path) -> None:
    import deepspeed

    from sktune.backbone.quantized import FrozenLinear8bit

    stored: dict[str, torch.Tensor] = {}
    for name, module in cell.assembly.model.backbone.base.named_modules():
        if isinstance(module, FrozenLinear8bit):
            with deepspeed.zero.GatheredParameters([module.weight]):
                stored[f"{name}.weight"] = module.weight.data.clone()
            stored[f"{name}.scale"] = module.scale.clone()
    assert stored
    if cell.ranks.is_main:
        save_file(stored, path)
    cell.ranks.barrier()


def main() -> None:
    path, meter, ranks = begin_cell(__doc__)
    jobs = json.loads(path.read_text(encoding="utf-8"))
    results = {
        name: measure(job, ranks, meter) if job["kind"] == "measure" else train(job, ranks)
        for name, job in jobs.items()
    }
    if ranks.is_main:
        path.with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main()
