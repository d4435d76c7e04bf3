"""Several short runs in a row on the ranks that a launcher starts, so that tests pay for one start only.

deepspeed --num_gpus 2 tests/train_several.py jobs.json; each rank writes `jobs.rank<N>.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training_fixtures import cut_back
from transformers.models.llama.modeling_llama import LlamaAttention

from sktune.backbone.attention import PREFIX_ATTRIBUTE
from sktune.distributed.deepspeed_engine import DeepSpeedEngine
from sktune.distributed.ranks import Ranks, leave_ranks, start_ranks
from sktune.errors import UserError
from sktune.inference import evaluate_run
from sktune.model.step_zero import _Check
from sktune.process import prepare_process
from sktune.recipe import load_recipe_document
from sktune.training.run import train


class NothingToResume(Exception):
    """The run to be cut back has failed; all ranks know."""


def run_job(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What the job's training or evaluation returns; it may start from a killed run's folder."""
    problem = _cut(job["cut"]) if "cut" in job and ranks.is_main else None
    if ranks.broadcast(problem) is not None:
        raise NothingToResume(problem)
    if job.get("watch"):
        return watch_gathered(job, ranks)
    if job.get("forgetful"):
        return train_forgetful(job, ranks)
    if "evaluate" in job:
        return evaluate_run(Path(job["evaluate"]), job["split"], ranks)
    return train(load_recipe_document(job["recipe"]), ranks)


def watch_gathered(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Trains, and adds what ZeRO-3 holds of the frozen parameters beyond its shares before and after each backward.

    `gathered`: for each step, the elements of gathered parameters that do not persist; `gathered_by_step_zero`: those
    at the end of the check of step 0, within its pass.
    """
    found: list[list[int]] = []
    by_step_zero: list[int] = []
    compare = _Check.compare
    backward = DeepSpeedEngine.backward

    def watched(engine: DeepSpeedEngine, loss: torch.Tensor) -> None:
        backbone = engine.engine.module.backbone
        before = sum(p.numel() for p in backbone.parameters() if not p.ds_persist)
        backward(engine, loss)
        after = sum(p.numel() for p in backbone.parameters() if not p.ds_persist)
        found.append([before, after])

    def watched_check(check: _Check) -> None:
        compare(check)
        by_step_zero.append(sum(p.numel() for p in check.backbone.parameters() if not p.ds_persist))

    with (
        mock.patch.object(DeepSpeedEngine, "backward", watched),
        mock.patch.object(_Check, "compare", watched_check),
    ):
        summary = train(load_recipe_document(job["recipe"]), ranks)
    return {**summary, "gathered": found, "gathered_by_step_zero": by_step_zero}


def train_forgetful(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Trains a model whose second block drops the prefix, which is refused."""
    forward = LlamaAttention.forward

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layer_idx == 1:
            self.__dict__.pop(PREFIX_ATTRIBUTE, None)
        return forward(self, *args, **kwargs)

    with mock.patch.object(LlamaAttention, "forward", forgetful):
        try:
            return train(load_recipe_document(job["recipe"]), ranks)
        except UserError as error:
            return {"refused": str(error)}


def _cut(cut: dict[str, Any]) -> str | None:
    try:
        cut_back(Path(cut["output"]), cut["step"], Path(cut["copy"]))
    except (OSError, IndexError, AssertionError) as error:
        return repr(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--local_rank", help="deepspeed passes it")
    jobs: Path = parser.parse_args().jobs
    prepare_process()
    ranks = start_ranks(60)
    results: dict[str, dict[str, Any]] = {}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        started = time.monotonic()
        unexpected = None
        try:
            results[job["name"]] = {"result": run_job(job, ranks)}
        except Exception as error:
            results[job["name"]] = {"error": f"{type(error).__name__}: {error}"}
            if not isinstance(error, FloatingPointError | NothingToResume):
                unexpected = error  # the ranks may have parted company: no further job is safe
        print(f"[{ranks.rank}] {job['name']}: {time.monotonic() - started:.1f} s", flush=True)
        jobs.with_suffix(f".rank{ranks.rank}.json").write_text(json.dumps(results), encoding="utf-8")
        if unexpected is not None:
            raise unexpected
    leave_ranks()


if __name__ == "__main__":
    main()
