"""A dry run's events, followed with what ZeRO-3 has gathered: bytes at each moment, and the peaks between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sktune.planning.dry_run import DryRun, Event, Mark
from sktune.planning.gathering import Coordinator
from sktune.planning.zero_hooks import Use

Numbers = Mapping[str, int]
"""Bytes by name: `peak/...` and `received/...` of a phase (forward, backward, evaluation; received also at the update),
`live/...` and `gathered/...` at a moment; `resting`, `activations`, `logits`."""


def follow(run: DryRun, depth: int, coordinator: Coordinator | None) -> Numbers:
    """Numbers of one step and one evaluation batch, when ZeRO-3 has learned the order of the modules.

    Args:
        run: of the whole model.
        depth: its blocks.
        coordinator: where ZeRO-3 shares the backbone.
    """
    walk = _Walk(depth, coordinator)
    if coordinator is not None:
        # The first pass reads the text, the next one then finds another order; that after it records it.
        walk.first(run)
        for _ in range(3):
            walk.step(run)
    walk.numbers = Counter({"resting": run.resting, "logits": run.logits, "activations": run.activations()})
    walk.step(run)
    walk.evaluate(run)
    return dict(walk.numbers)


class _Walk:
    """Goes through events; the latest numbers stand."""

    def __init__(self, depth: int, coordinator: Coordinator | None) -> None:
        self.middle = Mark("reached", depth // 2)
        self.coordinator = coordinator
        self.numbers: Counter[str] = Counter()
        self._received = 0

    def first(self, run: DryRun) -> None:
        """The pass that reads the text, where that is done once."""
        assert self.coordinator is not None
        self.coordinator.begin_pass()
        for event in run.first:
            self._event(event, "first")

    def step(self, run: DryRun) -> None:
        """A step and the update."""
        coordinator = self.coordinator
        if coordinator is not None:
            coordinator.begin_pass()
        phase = "forward"
        for event in run.step:
            self._event(event, phase)
            if event.what == Mark("after_forward"):
                self._end(phase)
                phase = "backward"
            elif event.what == self.middle:
                self._moment("in_backward", event.live)
        self._end(phase)
        if "live/in_backward" not in self.numbers:  # the gradient does not come down to the middle
            for what in ("live", "gathered"):
                self.numbers[f"{what}/in_backward"] = self.numbers[f"{what}/after_forward"]
        if coordinator is not None:
            coordinator.update()
        self._end("update")
        self._moment("after_step", run.step[-1].live)

    def evaluate(self, run: DryRun) -> None:
        """An evaluation batch, and what is still gathered at a checkpoint after it."""
        coordinator = self.coordinator
        if coordinator is not None:
            coordinator.begin_pass()
        for event in run.evaluation:
            self._event(event, "evaluation")
            if event.what == self.middle:
                self._moment("in_evaluation", event.live)
        self._end("evaluation")
        self._moment("at_checkpoint", run.resting)

    def _event(self, event: Event, phase: str) -> None:
        coordinator = self.coordinator
        peak = held = 0
        if coordinator is not None:
            coordinator.take_peak()
            if isinstance(event.what, Use):
                coordinator.use(event.what)
            elif event.what.name == "after_backward":
                coordinator.end_backward()
            elif event.what.name in ("after_first", "after_forward", "after_evaluation"):
                coordinator.end_forward()
            peak, held = coordinator.peak, coordinator.held
        name = f"peak/{phase}"
        self.numbers[name] = max(self.numbers[name], event.live + peak, event.peak + held)
        if isinstance(event.what, Mark) and event.what.name != "reached":
            self._moment(event.what.name, event.live)

    def _moment(self, name: str, live: int) -> None:
        self.numbers[f"live/{name}"] = live
        self.numbers[f"gathered/{name}"] = self.coordinator.held if self.coordinator is not None else 0

    def _end(self, phase: str) -> None:
        total = self.coordinator.received if self.coordinator is not None else 0
        self.numbers[f"received/{phase}"] = total - self._received
        self._received = total
