"""A recipe's run, observed: bytes of tensors that each rank holds; `true_size.py` starts it with `deepspeed`.

    deepspeed --num_gpus 2 benchmarks/true_size_cell.py job.json

The parts are those that `launchers/train.py` builds, and the rows are the recipe's. Rank 0 writes what was measured
beside the job, as `job.result.json`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from sharding_meter import Meter, begin_cell

from sktune.distributed.placement import Partitioned
from sktune.distributed.ranks import Ranks, leave_ranks
from sktune.recipe import load_recipe
from sktune.training.evaluate import model_inputs
from sktune.training.meters import frozen_bytes
from sktune.training.setup import build_engine, prepare

STEPS = 4
"""ZeRO-3 learns the order of the modules in the first ones, and the very first one reads the text."""
MOMENTS = ("after_load", "after_forward", "after_backward", "after_step")


@contextmanager
def forgetting_events(meter: Meter) -> Iterator[None]:
    """Lets the meter drop its events after every parameter that ZeRO-3 has taken its share of."""
    place = Partitioned.parameter

    def placed(self: Partitioned, value: torch.Tensor) -> torch.nn.Parameter:
        parameter = place(self, value)
        meter.forget_events()
        return parameter

    Partitioned.parameter = placed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Partitioned.parameter = place  # type: ignore[method-assign]


def measure(job: dict[str, Any], ranks: Ranks, meter: Meter) -> dict[str, Any]:
    """Bytes by moment, of every rank; the names of moments are those of the plan."""
    recipe = load_recipe(job["recipe"], job["overrides"])
    meter.start(Path(recipe.model.name_or_path).glob("*.safetensors"))
    meter.moment("nothing")
    with forgetting_events(meter):
        assembly = prepare(recipe, ranks)
    meter.moment("loaded")
    engine, _ = build_engine(assembly, ranks)
    meter.moment("after_load")
    assert assembly.raw is not None
    rows = assembly.encode(assembly.raw.train, "train").rows
    size = recipe.training.per_device_train_batch_size
    counts = [row.labelled for row in rows]
    engine.set_training(True)
    for step in range(STEPS):
        first = step * size * ranks.world_size
        labels = sum(counts[first : first + size * ranks.world_size])
        own = rows[first + ranks.rank * size :][:size]
        batch = model_inputs(assembly.collator(list(own)), ranks.device)
        engine.set_rate(1.0)
        meter.moment("before")
        output = engine(**batch, num_items_in_batch=labels)
        assert output.loss is not None
        meter.moment("after_forward")
        engine.backward(output.loss)
        meter.moment("after_backward")
        engine.step()
        meter.moment("after_step")
    readings = meter.stop()
    last = {reading.name: reading for reading in readings}
    return {
        "load_peak": ranks.gather(max(readings[1].peak, readings[2].peak)),
        "training_peak": ranks.gather(max(last[name].peak for name in MOMENTS[1:])),
        "live": {name: ranks.gather(last[name].registry) for name in MOMENTS},
        "own_share": ranks.gather(frozen_bytes(assembly.model.backbone)),
        "gathered_per_step": max(ranks.gather(sum(last[name].gathered for name in MOMENTS[1:]))),
        "instruments_differ_by": max(ranks.gather(max(abs(r.registry - r.allocator) for r in readings))),
    }


def main() -> None:
    path, meter, ranks = begin_cell(__doc__)
    if ranks.is_main:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = measure(json.loads(path.read_text(encoding="utf-8")), ranks, meter)
    if ranks.is_main:
        path.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main()
