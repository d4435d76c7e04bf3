"""Planning a run before it is started: bytes on each rank, bytes moved, and what to change where it does not fit."""

from sktune.planning.planner import choose_sharding, plan
from sktune.planning.report import MOMENTS, Moment, Plan

__all__ = ["MOMENTS", "Moment", "Plan", "choose_sharding", "plan"]
