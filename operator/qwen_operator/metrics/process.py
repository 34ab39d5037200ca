"""The metrics about this process: `qwen_operator_*`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import prometheus_client as prometheus

from qwen_operator.controller.queue import WorkQueue


class OperatorMetrics:
    """The metrics about this process."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self._reconciles = self._make(
            prometheus.Counter, "qwen_operator_reconciles", "Reconciles by outcome", ("outcome",)
        )
        self._seconds = self._make(prometheus.Histogram, "qwen_operator_reconcile_seconds", "Duration of a reconcile")
        self._errors = self._make(
            prometheus.Counter, "qwen_operator_reconcile_errors", "Reconciles that must be repeated", ("reason",)
        )
        self._requests = self._make(
            prometheus.Counter,
            "qwen_operator_api_requests",
            "Requests to the API server, without watches. Code 0 means no answer",
            ("verb", "resource", "code"),
        )
        self._skipped = self._make(
            prometheus.Counter,
            "qwen_operator_skipped_objects",
            "Objects that were skipped because they cannot be read",
            ("resource",),
        )
        self._readable = self._make(
            prometheus.Gauge,
            "qwen_operator_namespace_readable",
            "1 if the operator may read everything that it needs of a namespace that it serves, else 0",
            ("namespace",),
        )
        self._make(
            prometheus.Gauge, "qwen_operator_build_info", "Version of the operator, always 1", ("version",)
        ).labels(version("qwen-operator")).set(1)

    def follow(self, queue: WorkQueue, leads: Callable[[], bool], interval: Callable[[], float]) -> None:
        """Add the metrics of the queue, whether this process leads, and the interval between two looks at engines."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "qwen_operator_queue_depth": ("Objects that wait for a worker", lambda: len(queue) if leads() else 0),
            "qwen_operator_queue_age_seconds": (
                "How long the oldest object in the queue has waited",
                lambda: queue.age() if leads() else 0,
            ),
            "qwen_operator_scaling_interval_seconds": (
                "Seconds between the last two rounds of reading the engines, 0 in a process that does not lead",
                interval,
            ),
            "qwen_operator_leader": ("1 in the process that leads, 0 in the others", leads),
        }
        for name, (text, read) in gauges.items():
            self._make(prometheus.Gauge, name, text).set_function(read)

    def _make(self, kind: Any, name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
        return kind(name, text, labels, registry=self.registry)

    def reconciled(self, outcome: str, seconds: float) -> None:
        self._reconciles.labels(outcome).inc()
        self._seconds.observe(seconds)

    def failed(self, reason: str) -> None:
        """Count a reconcile that failed; `reason` is the name of the error's class."""
        self._errors.labels(reason).inc()

    def skipped(self, resource: str) -> None:
        """Count an object that the operator cannot read."""
        self._skipped.labels(resource).inc()

    def readable(self, namespace: str, readable: bool) -> None:
        """Note whether the operator may read everything that it needs of this namespace."""
        self._readable.labels(namespace).set(int(readable))

    def requested(self, verb: str, resource: str, status: int, _seconds: float) -> None:
        self._requests.labels(verb, resource, str(status)).inc()
