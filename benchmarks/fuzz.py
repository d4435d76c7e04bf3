"""Tries many made-up recipes, overrides, data files, adapters and records, and writes what came of them.

    python benchmarks/fuzz.py --cases 10000 --output benchmarks/results/fuzz.json

The inputs are those of `tests/fuzzing.py`. Each is fine or refused with one message; every other outcome is listed
under `defects`, by the place in sktune where it arose, with one input that brings it about.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from fuzzing import Case, cases, outcome  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402


def place_of(error: BaseException) -> str:
    """Type, and the last line of sktune or of the tests that the error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    frame = frames[-1]
    return f"{type(error).__name__} at {Path(frame.filename).relative_to(ROOT)}:{frame.lineno} ({frame.name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    defects: dict[str, dict[str, Any]] = {}
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        @seed(options.seed)
        @settings(
            max_examples=options.cases, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=cases)
        def attempt(case: Case) -> None:
            nonlocal slowest
            started = time.perf_counter()
            try:
                found = outcome(case, folder)
            except Exception as error:
                found = "defect"
                entry = defects.setdefault(place_of(error), {"count": 0, "error": str(error)[:300]})
                entry["count"] += 1
                entry.setdefault("files", {file: repr(content[:600]) for file, content in case.files.items()})
            outcomes[case.kind][found] += 1
            slowest = max(slowest, (time.perf_counter() - started, case.kind))

        attempt()
    result = {
        "cases": sum(counter.total() for counter in outcomes.values()),
        "seed": options.seed,
        "outcomes": {kind: dict(sorted(counter.items())) for kind, counter in sorted(outcomes.items())},
        "defects": defects,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "slowest_seconds": round(slowest[0], 3),
        "slowest_kind": slowest[1],
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "defects"}))
    for place, entry in defects.items():
        print(f"{entry['count']:>5}  {place}: {entry['error']}")


if __name__ == "__main__":
    main()
