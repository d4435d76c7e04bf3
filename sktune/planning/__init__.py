"""Planning a run before it is started: bytes on each rank, bytes moved, and what to change where it does not fit."""

from sktune.planning.choice import choose_sharding
from sktune.planning.planned_bytes import MOMENTS, Moment, Plan
from sktune.planning.planner import plan

__all__ = ["MOMENTS", "Moment", "Plan", "choose_sharding", "plan"]
