"""Experiment tracking: a local record of every run, and MLflow kept up to date with it."""

from sktune.tracking.interface import NullTracker, Status, Tracker
from sktune.tracking.start import start_tracking

__all__ = [
    "NullTracker",
    "Status",
    "Tracker",
    "start_tracking",
]
