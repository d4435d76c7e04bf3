"""What ZeRO-3 holds gathered at every instant: DeepSpeed's parameter coordinator, counting instead of communicating.

Follows `PartitionedParameterCoordinator` (deepspeed.runtime.zero, 0.19.8) rule by rule: parameters of the module at
hand are gathered, the next ones prefetched while few enough are live, and released after use unless they are used
again soon. A gather of several parameters goes through one flat buffer for each dtype, which lives until the last of
them has been asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from sktune.planning.zero_hooks import Use


@dataclass(frozen=True)
class Thresholds:
    """Of ZeRO-3's configuration, in elements of the packed dtypes."""

    prefetch: int
    persistence: int
    max_live: int
    max_reuse_distance: int


@dataclass(eq=False)
class Shared:
    """A parameter whose bytes the ranks share."""

    elements: int
    item: int
    """Bytes of an element."""
    trainable: bool
    persists: bool
    gathered: int = 0
    """Bytes held whole now, 0 where it is not available."""
    available: bool = False
    in_flight: _Group | None = None
    users: set[int] = field(default_factory=set)

    def bytes(self) -> int:
        """Bytes of the whole parameter."""
        return self.elements * self.item


@dataclass(eq=False)
class _Group:
    """One gather of several parameters: its flat buffers, and who has not been asked for yet."""

    members: list[Shared]
    waiting: set[Shared]
    flat: int
    """Bytes of the flat buffers; 0 for one parameter alone, which is its own buffer."""
    alone: bool
    done: bool = False


class Coordinator:
    """Follows the uses of modules, in order; `held` is what is gathered now, in bytes.

    Args:
        model: the modules whose numbers the uses name.
        thresholds: of the configuration.
        ranks: that share the parameters.
        on_host: the shares are in host memory, so that one rank alone copies them to the GPU as well.
    """

    def __init__(self, model: nn.Module, thresholds: Thresholds, ranks: int, on_host: bool = False) -> None:
        self.thresholds = thresholds
        self.ranks = ranks
        self.copies = ranks > 1 or on_host
        self.held = 0
        self.peak = 0
        self.received = 0
        """Bytes that gathers have put out, own share included."""
        shared: dict[int, Shared] = {}
        for parameter in model.parameters():
            shared[id(parameter)] = Shared(
                elements=parameter.numel(),
                item=parameter.element_size(),
                trainable=parameter.requires_grad,
                persists=parameter.numel() <= thresholds.persistence,
            )
        self.parameters = list(shared.values())
        self.of_module = [
            list(dict.fromkeys(shared[id(p)] for p in module.parameters(recurse=False))) for module in model.modules()
        ]
        self._trace: list[int] = []
        self._complete = False
        self._recording = False
        self._kept: dict[tuple[int, int], set[Shared]] = {}
        self._reset()

    # -- steps ------------------------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """The root module's forward begins: training or evaluation."""
        for parameter in self.parameters:
            if parameter.in_flight is not None:
                self._wait(parameter)
                self._free(parameter)
        self._kept = {}  # sktune makes DeepSpeed forget it
        if not self._complete:
            self._complete, self._recording = self._recording, not self._recording
            if self._recording:
                self._trace = []
        self._reset()

    def _reset(self) -> None:
        self._step = 0
        self._live = 0
        self._latest: dict[Shared, int] = {}
        self._backward: dict[int, set[Shared]] = {}
        trace = self._trace if self._complete else []
        self._queue = deque((p, step) for step, module in enumerate(trace) for p in self.of_module[module])

    def end_forward(self) -> None:
        """A forward pass ends: the engine lets go of the frozen model's layers."""
        for parameter in self.parameters:
            if parameter.trainable or parameter.persists:
                continue
            if parameter.in_flight is not None:
                self._wait(parameter)
            parameter.users.clear()
            self._free(parameter)

    def end_backward(self) -> None:
        """Lets go of modules whose backward never ended (an input without gradient)."""
        while self._backward:
            module, attributed = self._backward.popitem()
            for parameter in [*self.of_module[module], *attributed]:
                parameter.users.discard(module)
                if not parameter.persists:
                    self._free(parameter)

    def update(self) -> None:
        """The optimizer's step: everything is let go, and what persists is gathered again."""
        for parameter in self.parameters:
            parameter.users.clear()
            if parameter.in_flight is not None:
                self._wait(parameter)
            self._free(parameter)
        for parameter in self.parameters:
            if parameter.persists:
                self._gather([parameter])
                self._wait(parameter)

    # -- uses -------------------------------------------------------------------------------------------------------

    def use(self, use: Use) -> None:
        """Follows one use of a module."""
        if not use.fetch:
            self._release(use)
            return
        if self._complete and (self._step >= len(self._trace) or self._trace[self._step] != use.module):
            self._complete, self._recording = False, False
            self._queue, self._latest = deque(), {}
            for parameter in self.parameters:
                if parameter.in_flight is not None:
                    self._wait(parameter)
                    self._free(parameter)
        if self._recording:
            self._trace.append(use.module)
        if not use.forward:
            self._backward[use.module] = set()
        wanted = self.of_module[use.module]
        missing = [p for p in wanted if not p.available and p.in_flight is None]
        self._gather(missing)
        for parameter in wanted:
            parameter.users.add(use.module)
            if use.recompute and self._backward and not parameter.trainable:
                owner = next(reversed(self._backward))
                self._backward[owner].add(parameter)
                parameter.users.add(owner)
            self._wait(parameter)
        if self._complete:
            self._prefetch(wanted)
        self._step += 1

    def _prefetch(self, wanted: Sequence[Shared]) -> None:
        unseen = {p for p in wanted if self._latest.get(p, -1) < self._step}
        passed: set[Shared] = set()
        while self._queue and len(passed) < len(unseen):
            parameter, step = self._queue.popleft()
            self._latest[parameter] = step
            passed.add(parameter)
        room = min(self.thresholds.max_live - self._live, self.thresholds.prefetch)
        if self.thresholds.prefetch <= 0:
            return
        chosen: dict[Shared, None] = {}
        elements = 0
        while self._queue and elements < room:
            parameter, step = self._queue.popleft()
            absent = not parameter.available and parameter.in_flight is None and parameter not in chosen
            self._latest[parameter] = max(self._latest.get(parameter, -1), step)
            if absent:
                chosen[parameter] = None
                elements += parameter.elements
        self._gather(list(chosen))

    def _release(self, use: Use) -> None:
        module = use.module
        own = self.of_module[module]
        free = self._releasable(module) if self._complete else set(own)
        attributed: set[Shared] = set()
        if not use.forward:
            attributed = self._backward.pop(module, set())
            free = free | {p for p in attributed if not p.persists}
        for parameter in [*own, *attributed]:
            parameter.users.discard(module)
            if parameter in free:
                self._free(parameter)

    def _releasable(self, module: int) -> set[Shared]:
        key = (module, self._step)
        if key in self._kept:
            return self._kept[key]
        free = {p for p in self.of_module[module] if not p.persists and self._latest.get(p, -1) <= self._step}
        distance = 0
        for later in self._trace[self._step :]:
            if distance >= self.thresholds.max_reuse_distance:
                break
            for parameter in self.of_module[later]:
                free.discard(parameter)
                distance += parameter.elements
        self._kept[key] = free
        return free

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _gather(self, parameters: list[Shared]) -> None:
        if not parameters:
            return
        self._live += sum(parameter.elements for parameter in parameters)
        shares = [math.ceil(p.elements / self.ranks) * self.ranks * p.item for p in parameters]
        self.received += sum(shares) if self.ranks > 1 else 0
        group = _Group(parameters, set(parameters), 0, len(parameters) == 1)
        for parameter in parameters:
            parameter.in_flight = group
        if group.alone or self.ranks == 1:
            for parameter, share in zip(parameters, shares, strict=True):
                parameter.gathered = share if self.copies else 0
                self._hold(parameter.gathered)
        else:
            group.flat = sum(shares)
            self._hold(group.flat)

    def _wait(self, parameter: Shared) -> None:
        group = parameter.in_flight
        if group is None:
            return
        if not group.done:
            group.done = True
            for member in group.members:
                member.available = True
                if group.flat:
                    member.gathered = member.bytes()
                    self._hold(member.gathered)
        parameter.in_flight = None
        group.waiting.discard(parameter)
        if not group.waiting:
            self._hold(-group.flat)

    def _free(self, parameter: Shared) -> None:
        if parameter.available and not parameter.users:
            parameter.available = False
            self._live -= parameter.elements
            self._hold(-parameter.gathered)
            parameter.gathered = 0

    def _hold(self, change: int) -> None:
        self.held += change
        self.peak = max(self.peak, self.held)

    def take_peak(self) -> int:
        """The most bytes gathered since the last call."""
        peak, self.peak = self.peak, self.held
        return peak
