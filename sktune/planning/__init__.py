"""Planning a run before it is started: bytes on each rank, bytes moved, and what to change where it does not fit."""

from sktune.planning.choice import choose_sharding
from sktune.planning.planner import MOMENTS, Moment, Plan, plan

__all__ = ["MOMENTS", "Moment", "Plan", "choose_sharding", "plan"]
