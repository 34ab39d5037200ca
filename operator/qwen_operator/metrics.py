"""The operator's metrics: about itself (`qwen_operator_*`) and about the QwenDeployments (`qwen_deployment_*`).

Each page computes the metrics of the deployments from the store, so a deleted deployment has no series. Only the
leader reports deployments, so a sum over all operators counts nothing twice. Labels have few values: namespace and
deployment, names from the operator's own lists (states, reasons), and single values of a spec and its plan.
"""

import logging
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qwen_operator import objects, untrusted
from qwen_operator.controller.cache import Store
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.controller.worker import utc_now
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.objects import ObjectKey, key_of
from qwen_operator.replicas.fetches import fetches
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.replicas.wanted import last_wanted, written_size_rule
from qwen_operator.scaling.attainment import Share
from qwen_operator.scaling.demand import ModelDemand
from qwen_operator.scaling.types import Sample

KEY_LABELS = ("namespace", "deployment")
INFO_LABELS = ("model", "gpu_product", "tensor", "quantization", "engine_version", "revision")
_MOST = 10_000
_MOST_TOKENS = 10**15
_LARGEST = 1e18
_LABEL = 253
# The event loop waits for so many deployments at a time: some milliseconds.
_SLICE = 10

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class LoadSource:
    """Gives the numbers of the last scrape of the engines; see Autoscaler."""

    samples: Callable[[], Mapping[ObjectKey, Sample]]
    ages: Callable[[], Mapping[ObjectKey, float]]
    held: Callable[[], Mapping[ObjectKey, ModelDemand]] = dict
    shares: Callable[[ObjectKey], Mapping[str, Share]] = lambda _key: {}


@dataclass(slots=True, eq=False)
class DeploymentMetrics:
    """The metrics `qwen_deployment_*`."""

    store: Store
    load: LoadSource
    leads: Callable[[], bool]
    now: Callable[[], datetime] = utc_now
    _scaled: Counts[tuple[str, ...]] = field(default_factory=Counts)
    _failures: Counts[tuple[str, ...]] = field(default_factory=Counts)
    _fetches: Counts[tuple[str, ...]] = field(default_factory=Counts)
    _fetched_bytes: Counts[tuple[str, ...]] = field(default_factory=Counts)
    _counted: dict[ObjectKey, frozenset[str]] = field(default_factory=dict)
    _since: datetime = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.now()

    def count_changes(self, key: ObjectKey, old: Manifest, new: Manifest) -> None:
        """Count a change of the wanted size, and a new failure, between two statuses of a deployment."""
        scaling = objects.mapping(new, "scaling")
        before, now = objects.mapping(old, "scaling").get("wanted"), scaling.get("wanted")
        if isinstance(before, int) and isinstance(now, int) and before != now:
            self._scaled[(*key, "up" if now > before else "down", str(scaling.get("reason")))] += 1
        previous, last = objects.mapping(old, "lastFailure"), objects.mapping(new, "lastFailure")
        if last and (last.get("time"), last.get("pod")) != (previous.get("time"), previous.get("pod")):
            self._failures[(*key, str(last.get("reason")))] += 1

    def _count_fetches(self, key: ObjectKey, pods: Iterable[PodState]) -> None:
        """Count each fetch once. Those before this process began were counted by the one that led then."""
        done = fetches(pods)
        before = self._counted.get(key, frozenset())
        for one in done:
            if one.uid not in before and one.finished is not None and one.finished >= self._since:
                self._fetches[(*key, "hit" if one.hit else "miss")] += 1
                self._fetched_bytes[key] += one.hub_bytes
        self._counted[key] = frozenset(one.uid for one in done)

    def slices(self) -> Iterator[Iterable[Metric]]:
        """The metric families of a few deployments at a time, and at the end the counters.

        A deployment that changes between two slices appears as it is when its slice is made.
        """
        if not self.leads():
            return
        samples, ages, held = self.load.samples(), self.load.ages(), self.load.held()
        keys = [key_of(manifest) for manifest in self.store.deployments()]
        known = set(keys)
        self._counted = {key: uids for key, uids in self._counted.items() if key in known}
        for start in range(0, len(keys), _SLICE):
            yield self._gauges(keys[start : start + _SLICE], samples, ages, held)
        yield [
            self._counter("qwen_deployment_scale", self._scaled),
            self._counter("qwen_deployment_engine_failures", self._failures),
            self._counter("qwen_deployment_model_fetches", self._fetches),
            self._counter("qwen_deployment_model_fetched_bytes", self._fetched_bytes),
        ]

    def _gauges(
        self,
        keys: Iterable[ObjectKey],
        samples: Mapping[ObjectKey, Sample],
        ages: Mapping[ObjectKey, float],
        held: Mapping[ObjectKey, ModelDemand],
    ) -> Iterable[Metric]:
        gauges = _Gauges()
        for key in keys:
            manifest = self.store.get(QWENDEPLOYMENTS, key)
            if manifest is None:
                continue
            try:
                _status(gauges, key, manifest, self.now())
                replicas = self.store.replicas(manifest)
                _replicas(gauges, key, manifest, replicas)
                members = (pod for replica in replicas for pod in replica.members)
                self._count_fetches(key, (*members, *self.store.fetch_pods(manifest)))
            except Exception:
                log.exception("no metrics of this QwenDeployment", extra={"deployment": "/".join(key)})
            if (sample := samples.get(key)) is not None:
                _sample(gauges, key, sample)
            if (age := ages.get(key)) is not None:
                gauges.add("qwen_deployment_metrics_age_seconds", key, age)
            if (waiting := held.get(key)) is not None:
                gauges.add("qwen_deployment_held_requests", key, waiting.held)
                gauges.add("qwen_deployment_oldest_held_request_seconds", key, waiting.oldest)
            for window, share in self.load.shares(key).items():
                _attainment(gauges, key, window, share)
        return gauges.families.values()

    def _counter(self, name: str, counts: Counts[tuple[str, ...]]) -> Metric:
        text, labels = COUNTERS[name]
        family = CounterMetricFamily(name, text, labels=(*KEY_LABELS, *labels))
        gone = [values for values in counts if self.store.get(QWENDEPLOYMENTS, (values[0], values[1])) is None]
        for values in gone:
            del counts[values]
        for values, count in counts.items():
            family.add_metric(values, count)
        return family


COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen_deployment_scale": ("Changes of the wanted size", ("direction", "reason")),
    "qwen_deployment_engine_failures": ("Unexpected ends of engines", ("reason",)),
    "qwen_deployment_model_fetches": ("Starts of pods with a cache: hit (0 bytes from the hub) or miss", ("result",)),
    "qwen_deployment_model_fetched_bytes": ("Bytes that pods got from the hub for the cache", ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen_deployment_info": ("What the deployment serves and how, always 1", INFO_LABELS),
    "qwen_deployment_condition": ("The present conditions, always 1", ("type", "status", "reason")),
    "qwen_deployment_replicas": (
        "Replicas: wanted, advised (by load), limited (others have GPUs), granted (a node), starting, ready, draining",
        ("state",),
    ),
    "qwen_deployment_replicas_min": ("The smallest number of replicas that scaling may choose", ()),
    "qwen_deployment_replicas_max": ("The largest number of replicas that scaling may choose", ()),
    "qwen_deployment_scaling_configured": ("1 if spec.scaling is set, even while spec.replicas decides", ()),
    "qwen_deployment_gpus": ("GPUs: allocated (to pods with a node), ready (of replicas that answer)", ("state",)),
    "qwen_deployment_gpu_shares": (
        "MIG slices and shares of GPUs: allocated (to pods with a node), ready (of replicas that answer)",
        ("resource", "state"),
    ),
    "qwen_deployment_queue_requests": ("Requests that wait in the engines", ()),
    "qwen_deployment_running_requests": ("Requests that run in the engines", ()),
    "qwen_deployment_held_requests": ("Requests that wait in the gateway; only for minReplicas: 0", ()),
    "qwen_deployment_oldest_held_request_seconds": (
        "How long the first of these requests has waited; 0 if none waits",
        (),
    ),
    "qwen_deployment_kv_used_tokens": ("Tokens in use in the engines' KV caches", ()),
    "qwen_deployment_kv_capacity_tokens": ("Tokens for which the engines' KV caches have room", ()),
    "qwen_deployment_plan_kv_tokens": ("Planned: tokens for which the KV cache of one replica has room", ()),
    "qwen_deployment_observed_kv_tokens": ("Reported: tokens for which the smallest KV cache has room", ()),
    "qwen_deployment_plan_kv_tokens_ratio": ("Reported KV tokens of the smallest engine by planned ones", ()),
    "qwen_deployment_observed_weight_bytes": ("Reported: memory of the fullest GPU that the weights took", ()),
    "qwen_deployment_observed_free_memory_bytes": ("Reported: memory of the fullest GPU free after the start", ()),
    "qwen_deployment_observed_startup_seconds": ("Reported: seconds that the longest start took", ()),
    "qwen_deployment_plan_startup_seconds": ("Planned: seconds until a replica answers", ()),
    "qwen_deployment_objective_percent": ("Of 100 requests, how many should keep the objective", ()),
    "qwen_deployment_attainment_percent": (
        "Of 100 requests of the last hour or day, at least so many kept the objective, or one limit of it",
        ("window", "limit"),
    ),
    "qwen_deployment_attainment_requests": ("Requests of the last hour or day that were measured", ("window",)),
    "qwen_deployment_metrics_age_seconds": ("Age of the oldest numbers of a ready engine", ()),
}


class _Gauges:
    """Metric families by name. Each is made with its first value."""

    def __init__(self) -> None:
        self.families: dict[str, GaugeMetricFamily] = {}

    def add(self, name: str, key: ObjectKey, value: float | None, *labels: str) -> None:
        """Add a value. An unknown value (None) and one that cannot be a count get no series."""
        if not isinstance(value, int | float) or not untrusted.count(value, _LARGEST):
            return
        if name not in self.families:
            text, names = GAUGES[name]
            self.families[name] = GaugeMetricFamily(name, text, labels=(*KEY_LABELS, *names))
        self.families[name].add_metric((*key, *(untrusted.clean(label, _LABEL) for label in labels)), value)


def _status(gauges: _Gauges, key: ObjectKey, manifest: Manifest, now: datetime) -> None:
    status, plan = objects.mapping(manifest, "status"), objects.mapping(manifest, "status", "plan")
    info = (
        objects.mapping(manifest, "spec").get("model"),
        plan.get("gpuProduct"),
        objects.mapping(plan, "parallelism").get("tensor"),
        objects.mapping(status, "model").get("quantization"),
        plan.get("engineVersion"),
        plan.get("hash"),
    )
    gauges.add("qwen_deployment_info", key, 1, *("" if value is None else str(value) for value in info))
    parts = ("type", "status", "reason")
    for condition in objects.members(status, "conditions"):
        gauges.add("qwen_deployment_condition", key, 1, *(objects.text(condition, part) for part in parts))
    gauges.add("qwen_deployment_plan_kv_tokens", key, plan.get("kvTokens"))
    gauges.add("qwen_deployment_plan_startup_seconds", key, plan.get("startupSeconds"))
    _observed(gauges, key, plan, objects.mapping(status, "observed"))
    wanted, rule = last_wanted(manifest), written_size_rule(manifest, now)
    gauges.add("qwen_deployment_replicas", key, wanted, "wanted")
    gauges.add("qwen_deployment_replicas", key, objects.mapping(status, "scaling").get("granted"), "limited")
    if rule.bounds is not None:
        advised = objects.mapping(status, "scaling").get("advised", wanted)
        gauges.add("qwen_deployment_replicas", key, advised, "advised")
    gauges.add("qwen_deployment_objective_percent", key, rule.objective.attainment_percent)
    gauges.add("qwen_deployment_scaling_configured", key, int(rule.scaling_configured))
    gauges.add("qwen_deployment_replicas_min", key, rule.least)
    gauges.add("qwen_deployment_replicas_max", key, rule.most)


def _observed(gauges: _Gauges, key: ObjectKey, plan: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """What the engines of the plan's revision report, and its tokens as a share of the planned ones."""
    if seen.get("hash") != plan.get("hash"):
        return
    gauges.add("qwen_deployment_observed_weight_bytes", key, seen.get("weightBytes"))
    gauges.add("qwen_deployment_observed_free_memory_bytes", key, seen.get("freeMemoryBytes"))
    gauges.add("qwen_deployment_observed_startup_seconds", key, seen.get("startupSeconds"))
    planned = untrusted.whole(plan.get("kvTokens"), 1, _MOST_TOKENS, 0)
    tokens = untrusted.whole(seen.get("kvTokens"), 0, _MOST_TOKENS, -1)
    if planned and tokens >= 0:
        gauges.add("qwen_deployment_plan_kv_tokens_ratio", key, tokens / planned)


def _replicas(gauges: _Gauges, key: ObjectKey, manifest: Manifest, replicas: Iterable[Replica]) -> None:
    running = [replica for replica in replicas if not replica.broken]
    draining = [replica for replica in running if replica.deleting or replica.draining]
    status = objects.mapping(manifest, "status")
    ready = untrusted.whole(status.get("readyReplicas"), 0, _MOST, 0)
    granted = [replica for replica in running if replica.bound]
    gpus = untrusted.whole(objects.mapping(status, "plan").get("gpusPerReplica"), 0, _MOST, 0)
    states = {
        "granted": sum(replica not in draining for replica in granted),
        "ready": ready,
        "starting": max(0, len(running) - len(draining) - ready),
        "draining": len(draining),
    }
    for state, count in states.items():
        gauges.add("qwen_deployment_replicas", key, count, state)
    # A slice or a share is no GPU: several of them are one.
    parts = objects.mapping(status, "plan").get("resourceName")
    name, resource = ("qwen_deployment_gpu_shares", (str(parts),)) if parts else ("qwen_deployment_gpus", ())
    gauges.add(name, key, gpus * len(granted), *resource, "allocated")
    gauges.add(name, key, gpus * ready, *resource, "ready")


def _attainment(gauges: _Gauges, key: ObjectKey, window: str, share: Share) -> None:
    limits = {"timeToFirstToken": share.first_token, "timePerOutputToken": share.output_token, "all": share.both}
    for limit, kept in limits.items():
        percent = None if kept is None else 100 * kept
        gauges.add("qwen_deployment_attainment_percent", key, percent, window, limit)
    gauges.add("qwen_deployment_attainment_requests", key, share.requests, window)


def _sample(gauges: _Gauges, key: ObjectKey, sample: Sample) -> None:
    engines = sample.engines
    gauges.add("qwen_deployment_queue_requests", key, sum(engine.queued for engine in engines))
    gauges.add("qwen_deployment_running_requests", key, sum(engine.running for engine in engines))
    gauges.add("qwen_deployment_kv_used_tokens", key, sum(engine.tokens_used for engine in engines))
    gauges.add("qwen_deployment_kv_capacity_tokens", key, sum(engine.tokens_capacity for engine in engines))
    capacities = [engine.tokens_capacity for engine in engines if engine.tokens_capacity]
    gauges.add("qwen_deployment_observed_kv_tokens", key, min(capacities, default=None))
