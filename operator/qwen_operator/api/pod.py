"""`spec.pod`: what a cluster's owner adds to the engine pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_operator.api.fields import Passthrough, Rule, described

GPU_RESOURCE = "nvidia.com/gpu"
OWN_VOLUMES = ("qwen-runtime", "home", "tmp", "shm", "source")
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
        "Requests of the engine container by resource name, as Kubernetes quantities. Not set: cpu 500m and memory "
        "2Gi, so that a pod is never held back by a guess. Example: {cpu: 8, memory: 64Gi}.",
        default=dict,
        max_properties=16,
        items={"max_length": 64},
        rules=(_NO_GPUS,),
    )
    limits: Mapping[str, int | str] = described(
        "Limits of the engine container by resource name. Not set: none but the GPUs. A memory limit has to hold the "
        "host memory of the engine and /dev/shm. Example: {memory: 128Gi, rdma/ib: 1}.",
        default=dict,
        max_properties=16,
        items={"max_length": 64},
        rules=(_NO_GPUS,),
    )


@dataclass(frozen=True, slots=True)
class Pod:
    labels: Mapping[str, str] = described(
        "Labels that are added to the pods, for example for cost reports. Keys of the operator are refused.",
        default=dict,
        max_properties=32,
        items={"max_length": 63, "pattern": _LABEL_VALUE},
        rules=(_NOT_OURS,),
    )
    annotations: Mapping[str, str] = described(
        "Annotations that are added to the pods, for example for a service mesh. Keys of the operator are refused.",
        default=dict,
        max_properties=32,
        items={"max_length": 4096},
        rules=(_NOT_OURS,),
    )
    priority_class_name: str | None = described(
        "PriorityClass of the pods. Not set: the cluster's default. Pods of a higher class may evict others for "
        "their GPUs.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    image_pull_secrets: tuple[LocalReference, ...] = described(
        "Secrets with registry credentials, added to those of the chart. Example: [{name: my-registry}].",
        default=(),
        max_items=16,
        list_type="map",
        list_map_keys=["name"],
    )
    node_selector: Mapping[str, str] = described(
        "Labels that a node must have, in addition to those of the planned GPU. An entry of the same key replaces the "
        "planned one. Example: {topology.kubernetes.io/zone: eu-1a}.",
        default=dict,
        max_properties=32,
        items={"max_length": 63, "pattern": _LABEL_VALUE},
    )
    tolerations: tuple[Passthrough, ...] = described(
        "Tolerations as in a pod, added to the operator's own (every taint of the key nvidia.com/gpu) and those of "
        "the GPU pool. Example: [{key: dedicated, operator: Equal, value: inference, effect: NoSchedule}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    affinity: Passthrough | None = described(
        "Affinity as in a pod, handed over as it is. Not set: none.",
        default=None,
    )
    topology_spread_constraints: tuple[Passthrough, ...] = described(
        "Topology spread constraints as in a pod, handed over as they are. To spread the replicas, select the label "
        "qwen-operator.dev/deployment with the name of this object.",
        default=(),
        max_items=16,
        list_type="atomic",
    )
    runtime_class_name: str | None = described(
        'RuntimeClass of the pods. Not set: the default runtime. Some clusters need "nvidia" here.',
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    scheduler_name: str | None = described(
        "Scheduler of the pods. Not set: the cluster's default.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    service_account_name: str | None = described(
        "ServiceAccount of the pods, for example for cloud identities. Not set: default. Its token is not mounted: "
        "the engine does not talk to Kubernetes.",
        default=None,
        max_length=253,
        pattern=_NAME,
    )
    resources: Resources = described(
        "CPU, memory and further resources of the engine container. GPUs are planned and cannot be set here.",
        default=Resources,
    )
    volumes: tuple[Passthrough, ...] = described(
        "Volumes as in a pod, added to the operator's own. The names qwen-runtime, home, tmp, shm and source are "
        "taken. Example: [{name: templates, configMap: {name: chat-templates}}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    volume_mounts: tuple[Passthrough, ...] = described(
        "Mounts of such volumes in the engine container, as in a pod. Example: [{name: templates, mountPath: "
        "/templates, readOnly: true}].",
        default=(),
        max_items=32,
        list_type="atomic",
    )
    security_context: Passthrough | None = described(
        "Security context of the pod (not of a container), merged over the operator's own field by field: user, "
        "group and fsGroup 65532, runAsNonRoot, seccomp RuntimeDefault. Set runAsUser here if the weights can be "
        "read by another user only.",
        default=None,
    )
