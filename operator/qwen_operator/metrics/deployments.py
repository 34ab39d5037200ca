"""The metrics about the QwenDeployments: `qwen_deployment_*`.

Each page computes them from the store, so a deleted deployment has no series. Only the leader reports deployments, so a
sum over all operators counts nothing twice. Labels have few values: namespace and deployment, names from the operator's
own lists (states, reasons), and single values of a spec and its plan.
"""

from __future__ import annotations

import logging
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from qwen_operator import objects, untrusted
from qwen_operator.controller.cache import Store
from qwen_operator.controller.worker import utc_now
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.metrics.families import COUNTERS, KEY_LABELS, LABEL_LIMIT, Gauges
from qwen_operator.metrics.gpu_seconds import GpuSeconds, gpus_by_phase
from qwen_operator.objects import ObjectKey, key_of
from qwen_operator.replicas.fetches import fetches
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.pod_state import PodState
from qwen_operator.replicas.wanted import last_wanted, written_size_rule
from qwen_operator.scaling.attainment import Share
from qwen_operator.scaling.demand import ModelDemand
from qwen_operator.scaling.types import Sample

_MOST = 10_000
_MOST_TOKENS = 10**15
# The event loop waits for so many deployments at a time: some milliseconds.
_SLICE = 10

log = logging.getLogger(__name__)


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
    _gpu_seconds: GpuSeconds = field(default_factory=GpuSeconds)
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

    def _count_gpus(
        self, key: ObjectKey, manifest: Manifest, replicas: Iterable[Replica], sample: Sample | None
    ) -> None:
        """Count the seconds of whole GPUs. A slice or a share is no GPU."""
        plan = objects.mapping(manifest, "status", "plan")
        gpus = 0 if plan.get("resourceName") else untrusted.whole(plan.get("gpusPerReplica"), 0, _MOST, 0)
        held = gpus_by_phase(replicas, gpus, sample.engines if sample else ()) if gpus else {}
        product = untrusted.clean(plan.get("gpuProduct"), LABEL_LIMIT)
        self._gpu_seconds.note(key, product, held, self.now())

    def slices(self) -> Iterator[Iterable[Metric]]:
        """The metric families of a few deployments at a time, and at the end the counters.

        A deployment that changes between two slices appears as it is when its slice is made.
        """
        if not self.leads():
            self._gpu_seconds.pause()
            return
        samples, ages, held = self.load.samples(), self.load.ages(), self.load.held()
        keys = [key_of(manifest) for manifest in self.store.deployments()]
        known = set(keys)
        self._counted = {key: uids for key, uids in self._counted.items() if key in known}
        self._gpu_seconds.keep(known)
        for start in range(0, len(keys), _SLICE):
            yield self._gauges(keys[start : start + _SLICE], samples, ages, held)
        yield [
            self._counter("qwen_deployment_scale", self._scaled),
            self._counter("qwen_deployment_engine_failures", self._failures),
            self._counter("qwen_deployment_model_fetches", self._fetches),
            self._counter("qwen_deployment_model_fetched_bytes", self._fetched_bytes),
            self._counter("qwen_deployment_gpu_seconds", self._gpu_seconds.totals),
        ]

    def _gauges(
        self,
        keys: Iterable[ObjectKey],
        samples: Mapping[ObjectKey, Sample],
        ages: Mapping[ObjectKey, float],
        held: Mapping[ObjectKey, ModelDemand],
    ) -> Iterable[Metric]:
        gauges = Gauges()
        for key in keys:
            manifest = self.store.get(QWENDEPLOYMENTS, key)
            if manifest is None:
                continue
            try:
                _status(gauges, key, manifest, self.now())
                replicas = self.store.replicas(manifest)
                _replicas(gauges, key, manifest, replicas)
                self._count_gpus(key, manifest, replicas, samples.get(key))
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

    def _counter(self, name: str, counts: MutableMapping[tuple[str, ...], Any]) -> Metric:
        text, labels = COUNTERS[name]
        family = CounterMetricFamily(name, text, labels=(*KEY_LABELS, *labels))
        gone = [values for values in counts if self.store.get(QWENDEPLOYMENTS, (values[0], values[1])) is None]
        for values in gone:
            del counts[values]
        for values, count in counts.items():
            family.add_metric(values, count)
        return family


def _status(gauges: Gauges, key: ObjectKey, manifest: Manifest, now: datetime) -> None:
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


def _observed(gauges: Gauges, key: ObjectKey, plan: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
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


def _replicas(gauges: Gauges, key: ObjectKey, manifest: Manifest, replicas: Iterable[Replica]) -> None:
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


def _attainment(gauges: Gauges, key: ObjectKey, window: str, share: Share) -> None:
    limits = {"timeToFirstToken": share.first_token, "timePerOutputToken": share.output_token, "all": share.both}
    for limit, kept in limits.items():
        percent = None if kept is None else 100 * kept
        gauges.add("qwen_deployment_attainment_percent", key, percent, window, limit)
    gauges.add("qwen_deployment_attainment_requests", key, share.requests, window)


def _sample(gauges: Gauges, key: ObjectKey, sample: Sample) -> None:
    engines = sample.engines
    gauges.add("qwen_deployment_queue_requests", key, sum(engine.queued for engine in engines))
    gauges.add("qwen_deployment_running_requests", key, sum(engine.running for engine in engines))
    gauges.add("qwen_deployment_kv_used_tokens", key, sum(engine.tokens_used for engine in engines))
    gauges.add("qwen_deployment_kv_capacity_tokens", key, sum(engine.tokens_capacity for engine in engines))
    capacities = [engine.tokens_capacity for engine in engines if engine.tokens_capacity]
    gauges.add("qwen_deployment_observed_kv_tokens", key, min(capacities, default=None))
