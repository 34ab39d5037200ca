"""`spec.pod`: what users add to the engine pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwen_operator.api.fields import Passthrough, Rule, described

GPU_RESOURCE = "nvidia.com/gpu"
CACHE_VOLUME = "qwen-model-cache"
ENGINE_CACHE_VOLUME = "qwen-engine-cache"
OWN_VOLUMES = ("qwen-runtime", "home", "tmp", "shm", "source", CACHE_VOLUME, ENGINE_CACHE_VOLUME, "qwen-group")
DEFAULTS = ("labels", "annotations", "priorityClassName", "imagePullSecrets", "tolerations", "resources")
"""The fields that a chart can set for all engine pods."""
OWN_PREFIXES = ("qwen-operator.dev/", "app.kubernetes.io/")

_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_NO_GPUS = Rule(
    f"!('{GPU_RESOURCE}' in self)",
    f"must not contain {GPU_RESOURCE}: the number of GPUs follows from spec.parallelism.tensor",
    lambda value: GPU_RESOURCE not in value,
)
_NOT_OURS = Rule(
    "!self.exists(key, key.startsWith('qwen-operator.dev/') || key.startsWith('app.kubernetes.io/'))",
    "must not contain keys that begin with qwen-operator.dev/ or app.kubernetes.io/: the operator sets those itself",
    lambda value: not any(key.startswith(OWN_PREFIXES) for key in value),
)


@dataclass(frozen=True, slots=True)
class LocalReference:
    name: str = described("Name of a Secret in the namespace of this object.", max_length=253, pattern=_NAME)


@dataclass(frozen=True, slots=True)
class Resources:
    requests: Mapping[str, int | str] = described(
        "Requests of the engine container by resource name, as Kubernetes quantities. Default: cpu 500m and memory "
        "2Gi for each GPU of the pod. This is a minimum, so that a guess does not keep a pod from being scheduled. "
        "Example: {cpu: 8, memory: 64Gi}.",
        default=dict,
        max_properties=16,
        items={"max_length": 64},
        rules=(_NO_GPUS,),
    )
    limits: Mapping[str, int | str] = described(
        "Limits of the engine container by resource name. A memory limit must be large enough for the engine's host "
        "memory and /dev/shm. Default: only the GPUs are limited. Example: {memory: 128Gi, rdma/ib: 1}.",
        default=dict,
        max_properties=16,
        items={"max_length": 64},
        rules=(_NO_GPUS,),
    )


@dataclass(frozen=True, slots=True)
class Pod:
    labels: Mapping[str, str] = described(
        "Labels for the pods, for example for cost reports. The operator rejects keys that it uses itself.",
        default=dict,
        max_properties=32,
        items={"max_length": 63, "pattern": _LABEL_VALUE},
        rules=(_NOT_OURS,),
    )
    annotations: Mapping[str, str] = described(
        "Annotations for the pods, for example for a service mesh. The operator rejects keys that it uses itself.",
        default=dict,
        max_properties=32,
        items={"max_length": 4096},
        rules=(_NOT_OURS,),
    )
    priority_class_name: str | None = described(
        "PriorityClass of the pods. When GPUs are short, replicas of a lower value drain for those of a higher one. "
        "Default: the cluster's default.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    image_pull_secrets: tuple[LocalReference, ...] = described(
        "Secrets with registry credentials, in addition to those of the chart. Example: [{name: my-registry}].",
        default=(),
        max_items=16,
        list_type="map",
        list_map_keys=["name"],
    )
    node_selector: Mapping[str, str] = described(
        "Labels that a node must have, in addition to those of the planned GPU. An entry with the same key replaces "
        "the planned one. Example: {topology.kubernetes.io/zone: eu-1a}.",
        default=dict,
        max_properties=32,
        items={"max_length": 63, "pattern": _LABEL_VALUE},
    )
    tolerations: tuple[Passthrough, ...] = described(
        "Tolerations as in a pod. They are added to those of the GPU pool and to the operator's own, which tolerates "
        "every taint with the key nvidia.com/gpu. Example: [{key: dedicated, operator: Equal, value: inference, "
        "effect: NoSchedule}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    affinity: Passthrough | None = described(
        "Affinity as in a pod. The operator passes it on unchanged. Default: none.",
        default=None,
    )
    topology_spread_constraints: tuple[Passthrough, ...] = described(
        "Topology spread constraints as in a pod. The operator passes them on unchanged. To spread the replicas, "
        "select the label qwen-operator.dev/deployment with the name of this object.",
        default=(),
        max_items=16,
        list_type="atomic",
    )
    runtime_class_name: str | None = described(
        'RuntimeClass of the pods. Some clusters need "nvidia" here. Default: the default runtime.',
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    scheduler_name: str | None = described(
        "Scheduler of the pods. Default: the cluster's default.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    service_account_name: str | None = described(
        "ServiceAccount of the pods, for example for cloud identities. Its token is not mounted, because the engine "
        "does not use the Kubernetes API. Default: default.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    resources: Resources = described(
        "CPU, memory and other resources of the engine container. You cannot set GPUs here, because the operator "
        "plans them.",
        default=Resources,
    )
    volumes: tuple[Passthrough, ...] = described(
        "Volumes as in a pod, in addition to the operator's own. You cannot use the names qwen-runtime, home, tmp, "
        "shm, source, qwen-model-cache, qwen-engine-cache and qwen-group. "
        "Example: [{name: templates, configMap: {name: chat-templates}}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    volume_mounts: tuple[Passthrough, ...] = described(
        "Mounts of these volumes in the engine container, as in a pod. Example: [{name: templates, mountPath: "
        "/templates, readOnly: true}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    security_context: Passthrough | None = described(
        "Security context of the pod (not of a container). Its fields replace the operator's own: user, group and "
        "fsGroup 65532, runAsNonRoot, seccomp RuntimeDefault. Set runAsUser here if only another user can read the "
        "weights.",
        default=None,
    )


def with_defaults(own: Pod, defaults: Pod) -> Pod:
    """An object's pod fields on top of those of the chart.

    Of labels, annotations and resources, each entry counts by itself. Tolerations and pull secrets add up.
    """
    resources = Resources(
        requests={**defaults.resources.requests, **own.resources.requests},
        limits={**defaults.resources.limits, **own.resources.limits},
    )
    return replace(
        own,
        labels={**defaults.labels, **own.labels},
        annotations={**defaults.annotations, **own.annotations},
        priority_class_name=own.priority_class_name or defaults.priority_class_name,
        image_pull_secrets=tuple(dict.fromkeys((*defaults.image_pull_secrets, *own.image_pull_secrets))),
        tolerations=(*defaults.tolerations, *own.tolerations),
        resources=resources,
    )
