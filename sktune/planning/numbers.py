"""The dry runs behind a plan, each done once: of shallow models, where the blocks are alike."""

from __future__ import annotations

from functools import lru_cache

from sktune.planning.deepening import SHALLOW, Ran, deepened
from sktune.planning.dry_run import DryRun, dry_run
from sktune.planning.engine import Engine
from sktune.planning.gathering import Coordinator
from sktune.planning.parts import Parts
from sktune.planning.timeline import Numbers, follow
from sktune.tasks import TunedModel, check_positions

_SHAPING = {"model", "quantization", "method", "task", "data", "training"}
"""Sections of a recipe that a dry run depends on."""


def numbers_of(parts: Parts, model: TunedModel, engine: Engine, ranks: int) -> Numbers:
    """Bytes at the moments of a step and an evaluation batch, besides the shares that stay.

    Args:
        parts: of the recipe.
        model: at its full depth, on the meta device.
        engine: of the run.
        ranks: that share what is shared.
    """
    run = run_of(parts, model, engine)
    coordinator = None
    if engine.sharded:
        coordinator = Coordinator(model, engine.thresholds, ranks, on_host=engine.parameters_on_host)
    return follow(run, parts.depth, coordinator)


def run_of(parts: Parts, model: TunedModel, engine: Engine) -> DryRun:
    """The dry run of a recipe under an engine."""
    key = _Key(parts, engine.sharded, engine.stage == 0)
    method = parts.recipe.method
    # A shallow model has no room for what such a method does at a depth of its own.
    by_depth = method.depth_needed >= SHALLOW[0]
    if parts.is_uniform and not by_depth and parts.depth > SHALLOW[-1]:
        small, large = (_run(key, depth) for depth in SHALLOW)
        run = deepened(small, large, model)
        if run is not None:
            return run
    return _run(key, parts.depth)[1]


class _Key:
    """Equal for runs that are the same."""

    def __init__(self, parts: Parts, sharded: bool, keep_gradients: bool) -> None:
        self.parts, self.sharded, self.keep_gradients = parts, sharded, keep_gradients
        self._text = f"{sharded} {keep_gradients} {parts.recipe.model_dump_json(include=_SHAPING)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@lru_cache(maxsize=32)
def _run(key: _Key, depth: int) -> Ran:
    model = key.parts.build(depth)
    limit, length = model.backbone.max_positions, key.parts.length
    if key.parts.recipe.method.answers_in_words:  # demonstrations that find no place are left out
        length = length if limit is None else min(length, limit)
    else:
        check_positions(key.parts.recipe, model.backbone, model.method.positions)
    run = dry_run(model, key.parts.recipe, sharded=key.sharded, keep_gradients=key.keep_gradients, length=length)
    return model, run
