"""MLflow's own monitor of the machine: load and memory of CPU, disk, network and GPUs under a run."""

from __future__ import annotations

import importlib.util
import logging
from typing import Protocol

logger = logging.getLogger(__name__)


class Monitor(Protocol):
    """A thread that samples."""

    def finish(self) -> None:
        """Ends it, and sends what it has."""
        ...


def watch_system(uri: str, run_id: str) -> Monitor:
    """Starts sampling; how often, MLflow's variables say (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL: 10 seconds).

    A run that is continued goes on behind its last sample. A server that goes away ends the sampling with a warning.
    """
    import torch
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # that it starts and ends
    if torch.cuda.is_available() and importlib.util.find_spec("pynvml") is None:
        logger.warning("tracking.system_metrics: GPUs are left out: MLflow reads them through pip install nvidia-ml-py")
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor
