"""The names, texts and labels of the metrics `qwen_deployment_*`."""

from __future__ import annotations

from prometheus_client.core import GaugeMetricFamily

from qwen_operator import untrusted
from qwen_operator.objects import ObjectKey

KEY_LABELS = ("namespace", "deployment")
INFO_LABELS = ("model", "gpu_product", "tensor", "quantization", "engine_version", "revision")
_LARGEST = 1e18
LABEL_LIMIT = 253

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen_deployment_scale": ("Changes of the wanted size", ("direction", "reason")),
    "qwen_deployment_engine_failures": ("Unexpected ends of engines", ("reason",)),
    "qwen_deployment_model_fetches": (
        "Pods whose container fetch got the model: hit (0 bytes from the hub) or miss",
        ("result",),
    ),
    "qwen_deployment_model_fetched_bytes": ("Bytes that pods got from the hub for the cache", ()),
    "qwen_deployment_gpu_seconds": (
        "Seconds of whole GPUs that pods had: loading, serving, idle (no request) or draining",
        ("gpu_product", "phase"),
    ),
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


class Gauges:
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
        self.families[name].add_metric((*key, *(untrusted.clean(label, LABEL_LIMIT) for label in labels)), value)
