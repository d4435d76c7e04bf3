"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sktune.serving.adapters import Shelf
from sktune.serving.reading import Item

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
NOBODY = ""
"""The adapter of a request that names none that there is."""


class Metrics:
    """Counts of one server; `text` gives them all.

    Args:
        shelf: the adapters.
        waiting: how many texts wait now.
    """

    def __init__(self, shelf: Shelf, waiting: Callable[[], int]) -> None:
        self._shelf = shelf
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "sktune_requests", "Requests for answers, by adapter and status.", ["adapter", "status"], registry=registry
        )
        self._seconds = Histogram(
            "sktune_request_seconds", "From a request to its answers.", ["adapter"], buckets=SECONDS, registry=registry
        )
        self._texts = Counter("sktune_texts", "Texts read.", ["adapter"], registry=registry)
        self._rows = Histogram("sktune_batch_rows", "Rows read in one pass.", buckets=ROWS, registry=registry)
        self._adapters_read = Histogram(
            "sktune_batch_adapters", "Adapters that share a pass.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self._busy = Counter("sktune_model_seconds", "Time that the model was reading.", registry=registry)
        waiting_texts = Gauge("sktune_waiting_texts", "Texts that wait for the model.", registry=registry)
        waiting_texts.set_function(waiting)
        adapters = Gauge("sktune_adapters", "Adapters on the model.", registry=registry)
        adapters.set_function(lambda: len(shelf))
        self._bytes = Gauge(
            "sktune_adapter_bytes", "What an adapter holds besides the model.", ["adapter"], registry=registry
        )

    def answered(self, adapter: str, status: int, seconds: float) -> None:
        """A request is done."""
        self._requests.labels(adapter, str(status)).inc()
        if status == 200:
            self._seconds.labels(adapter).observe(seconds)

    def read(self, items: Sequence[Item], seconds: float) -> None:
        """A batch was read."""
        if not items:
            return
        self._busy.inc(seconds)
        self._rows.observe(sum(len(item.rows) for item in items))
        texts = Tally(item.served.name for item in items)
        self._adapters_read.observe(len(texts))
        for name, count in texts.items():
            self._texts.labels(name).inc(count)

    def text(self) -> bytes:
        """All of them, as text."""
        self._bytes.clear()
        for served in self._shelf.values():
            self._bytes.labels(served.name).set(served.size)
        return generate_latest(self._registry)
