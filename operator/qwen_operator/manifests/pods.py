"""Pods of engines and inspections as plain dicts.

Both meet the restricted Pod Security profile. The user's additions in `spec.pod` win, but they cannot remove the labels
and annotations by which the operator recognizes its pods.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.pod import GPU_RESOURCE, Pod
from qwen_operator.api.spec import Spec
from qwen_operator.hardware.inventory import PRODUCT_LABEL, GpuProduct
from qwen_operator.manifests import expansion, model_cache, names
from qwen_operator.manifests.adapters import list_parts
from qwen_operator.manifests.group_pods import apart, as_member, group_command, group_parts, group_seconds
from qwen_operator.manifests.multi_node import near
from qwen_operator.manifests.names import Manifest, Owner, PodIdentity
from qwen_operator.manifests.quantities import canonical_quantities
from qwen_operator.planning.adapters import FETCHED
from qwen_operator.planning.types import EngineSource, Plan

RUNTIME_MOUNT = "/qwen-runtime"
RUNTIME = f"{RUNTIME_MOUNT}/qwen-runtime.pyz"
_IMAGE_RUNTIME = "/opt/qwen-operator/qwen-runtime.pyz"
_HOME = "/home/qwen"
_USER = 65532

_PRESTOP_SECONDS = 5
# For the preStop wait, SGLang's own steps of 5 s, and its exit.
_GRACE_MARGIN_SECONDS = 30
# Every pod gets its own grace period when it is created, so this value has no effect. Another value here would make
# every pinned template differ from a new one.
_TEMPLATE_GRACE_SECONDS = 630
_INSPECTION_SECONDS = 600
# The node first pulls an image with all weights.
_IMAGE_SECONDS = 7200
# The kubelet shows the digest of the image of a container that it could not start, too. Nothing in an image can be this
# program, because the kernel's own files are mounted over its /proc: so nobody can run an image of their choice.
_NO_PROGRAM = "/proc/qwen-operator-wants-only-the-digest"
_STARTUP_PERIOD = 5
# A start that takes longer than planned is not necessarily a hang.
_STARTUP_FACTOR = 2

_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
_RUNTIME_RESOURCES = {"cpu": "250m", "memory": "128Mi"}
_GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists"}


@dataclass(frozen=True, slots=True)
class InspectionDefaults:
    """The chart's settings of inspection pods. A `node_selector` replaces that of spec.pod."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        }
    )


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """The operator's own image, for inspections and for the init container of engine pods.

    `pull_secrets` come from the chart and are for all pods.
    """

    reference: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    inspection: InspectionDefaults = InspectionDefaults()


def engine_template(
    identity: PodIdentity, spec: Spec, plan: Plan, source: EngineSource, runtime: RuntimeImage
) -> Manifest:
    """The pod of every replica, without its name: {"metadata": {labels, annotations}, "spec": {...}}.

    A ControllerRevision pins it.
    """
    source = model_cache.mounted(source, identity.owner.namespace)
    source = model_cache.with_compile_cache(source, plan)
    labels = _pod_labels(identity, names.ROLE_ENGINE) | {names.LABEL_ROUTABLE: "true"}
    pod = {
        **_common(spec.pod, runtime, source, (_GPU_TOLERATION, *plan.tolerations)),
        **_present(
            nodeSelector={**plan.selector, **spec.pod.node_selector},
            runtimeClassName=spec.pod.runtime_class_name,
            topologySpreadConstraints=[dict(item) for item in spec.pod.topology_spread_constraints],
        ),
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": _TEMPLATE_GRACE_SECONDS,
        "initContainers": [_runtime_container(runtime), *_fetch_containers(source, identity, plan, runtime)],
        "containers": [_engine_container(spec, plan, source)],
        "volumes": _engine_volumes(spec, plan, source),
    }
    return {
        "metadata": {
            "labels": {**spec.pod.labels, **labels},
            "annotations": {
                **spec.pod.annotations,
                names.ANNOTATION_OWNER_UID: identity.owner.uid,
                **(list_parts(source.adapters, plan.nodes_per_replica).annotations or {}),
            },
        },
        "spec": canonical_quantities(pod),
    }


def same_template(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two templates of `engine_template` run the same.

    In earlier versions engine pods had a headless Service. Templates of that time still have its name as `subdomain`,
    which has no effect.
    """
    return _without_subdomain(one) == _without_subdomain(other)


def _without_subdomain(template: Mapping[str, Any]) -> Manifest:
    spec = {name: value for name, value in template["spec"].items() if name != "subdomain"}
    return {**template, "spec": spec}


def grace_seconds(drain_seconds: int) -> int:
    """The time that an engine gets to stop. Requests that still run after it are cut.

    So an eviction or a deletion by hand gives running requests as much time as a planned removal.
    """
    return drain_seconds + _GRACE_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class ReplicaPods:
    """The pods of a replica: replica `index` of a revision consists of `pods` pods, each on a node of its own unless
    `distinct_nodes` is false."""

    identity: PodIdentity
    index: int
    pods: int = 1
    distinct_nodes: bool = True


def engine_pods(replica: ReplicaPods, template: Mapping[str, Any], drain_seconds: int) -> tuple[Manifest, ...]:
    """The pods of one replica by rank, from a template of `engine_template`.

    If there are several, only the first, the leader, has the role and the label by which pods get requests, are
    scraped and are counted. The scheduler places none of them before the operator removes their gates.
    `drain_seconds` is not part of the template, so a change of it replaces no pods.
    """
    return deepcopy(shared_engine_pods(replica, template, drain_seconds))


def shared_engine_pods(replica: ReplicaPods, template: Mapping[str, Any], drain_seconds: int) -> tuple[Manifest, ...]:
    """The same to compare with: their specs are parts of the template, so do not change them."""
    owner = replica.identity.owner
    name = names.replica_name(owner.name, replica.identity.revision, replica.index)
    pods = [
        _engine_pod(owner, pod_name, template, drain_seconds) for pod_name in names.engine_pod_names(name, replica.pods)
    ]
    if replica.pods == 1:
        return tuple(pods)
    members = (near(as_member(pod, name, rank, replica.pods), name) for rank, pod in enumerate(pods))
    return tuple(apart(pod, name) for pod in members) if replica.distinct_nodes else tuple(members)


def _engine_pod(owner: Owner, name: str, template: Mapping[str, Any], drain_seconds: int) -> Manifest:
    pinned = template["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **names.metadata(owner, name, dict(pinned["labels"])),
            "annotations": dict(pinned["annotations"]),
        },
        "spec": {
            **template["spec"],
            "terminationGracePeriodSeconds": grace_seconds(drain_seconds),
        },
    }


@dataclass(frozen=True, slots=True)
class InspectionPlace:
    """Where an inspection pod may run. It tolerates the taints of the nodes of `products`.

    `near_gpus`: it must run on these nodes, like the engines. A claim that is not bound yet may bind where its first
    pod runs. Otherwise it stays away from GPUs if it can, so that it does not boot a node of an empty GPU pool.
    """

    products: Sequence[GpuProduct] = ()
    near_gpus: bool = True


def inspection_pod(
    identity: PodIdentity, spec: Spec, source: EngineSource, runtime: RuntimeImage, place: InspectionPlace
) -> Manifest:
    """The pod that reads the checkpoint from the engine's mount, and reports its facts in its termination message.

    It runs as the engines' user. So engines can read what it can read.
    """
    labels = _pod_labels(identity, names.ROLE_INSPECTION)
    name = names.inspection_pod_name(identity.owner.name, identity.revision)
    metadata = names.metadata(identity.owner, name, {**spec.pod.labels, **labels})
    metadata["annotations"] = {**spec.pod.annotations, **metadata["annotations"]}
    container = {
        "name": names.INSPECTION_CONTAINER,
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "command": _literal(source.inspection or _inspection_command(source)),
        **_present(env=[_variable(variable) for variable in source.env]),
        "resources": {part: dict(amounts) for part, amounts in runtime.inspection.resources.items()},
        "securityContext": deepcopy(_CONTAINER_SECURITY),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [dict(mount) for mount in source.mounts],
    }
    tolerations = [item for product in place.products for item in product.tolerations]
    selector = runtime.inspection.node_selector or spec.pod.node_selector
    pod = {
        **_common(spec.pod, runtime, source, (_GPU_TOLERATION, *tolerations)),
        **_present(nodeSelector=dict(selector), affinity=_inspection_affinity(spec.pod, runtime, place)),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _IMAGE_SECONDS if source.image else _INSPECTION_SECONDS,
        "containers": [container, *_image_container(container, source)],
        "volumes": [dict(volume) for volume in source.volumes],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": canonical_quantities(pod)}


def _image_container(inspection: Manifest, source: EngineSource) -> list[Manifest]:
    if source.image is None or not source.image.digest_wanted:
        return []
    container = {
        "name": names.IMAGE_CONTAINER,
        "image": source.image.reference,
        # The volume has just pulled it: another pull might find another image.
        "imagePullPolicy": "IfNotPresent",
        "command": [_NO_PROGRAM],
    }
    return [container | {part: deepcopy(inspection[part]) for part in ("resources", "securityContext")}]


def _inspection_command(source: EngineSource) -> tuple[str, ...]:
    model = ("--path", source.model_path) if source.model_path else ()
    adapters = tuple(f"--adapter={name}={folder}" for name, folder in source.adapters)
    return ("python3", _IMAGE_RUNTIME, "inspect", *model, *adapters)


def _inspection_affinity(pod: Pod, runtime: RuntimeImage, place: InspectionPlace) -> Manifest:
    """The user's affinity. If it has no node affinity, it gets one for the nodes of the place's products, or away."""
    affinity = dict(pod.affinity or {})
    if "nodeAffinity" in affinity or runtime.inspection.node_selector:
        return affinity
    if not place.near_gpus:
        absent = {"matchExpressions": [{"key": PRODUCT_LABEL, "operator": "DoesNotExist"}]}
        preferred = [{"weight": 100, "preference": absent}]
        return {**affinity, "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in sorted(product.selector.items())
            ]
        }
        for product in place.products
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {**affinity, "nodeAffinity": required} if terms else affinity


def reads_alike(template: Mapping[str, Any], pod: Pod, source: EngineSource) -> bool:
    """Whether the pods of a pinned template read this source as the same user, so that its facts hold for both."""
    spec = template["spec"]
    commands = [part for container in spec["containers"] for part in container.get("command") or ()]
    return (
        spec.get("securityContext") == json.loads(json.dumps(_pod_security(pod)))
        and all(dict(volume) in spec["volumes"] for volume in source.volumes)
        and f"--model-path={source.model_path}" in commands
    )


def _pod_security(pod: Pod) -> Manifest:
    return {**deepcopy(_POD_SECURITY), **(pod.security_context or {})}


def _pod_labels(identity: PodIdentity, role: str) -> dict[str, str]:
    labels = names.common_labels(identity.owner, name="sglang", component=role)
    return labels | {names.LABEL_ROLE: role, names.LABEL_REVISION: identity.revision}


def _common(
    pod: Pod, runtime: RuntimeImage, source: EngineSource, tolerations: tuple[Mapping[str, Any], ...]
) -> Manifest:
    """The common part of engine and inspection pods: identity, placement and access, with the user's additions."""
    of_source = source.image.pull_secrets if source.image else ()
    secrets = dict.fromkeys((*runtime.pull_secrets, *(secret.name for secret in pod.image_pull_secrets), *of_source))
    optional = _present(
        priorityClassName=pod.priority_class_name,
        schedulerName=pod.scheduler_name,
        serviceAccountName=pod.service_account_name,
        affinity=dict(pod.affinity or {}),
        imagePullSecrets=[{"name": name} for name in secrets],
    )
    return {
        **optional,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(pod),
        "tolerations": [dict(item) for item in (*tolerations, *pod.tolerations)],
    }


def _runtime_container(runtime: RuntimeImage) -> Manifest:
    return {
        "name": names.RUNTIME_CONTAINER,
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "command": ["python3", _IMAGE_RUNTIME, "install", RUNTIME_MOUNT],
        # Equal requests and limits satisfy every ResourceQuota and LimitRange ratio. They cost nothing: a pod needs the
        # larger of its init containers and its engine.
        "resources": {"requests": dict(_RUNTIME_RESOURCES), "limits": dict(_RUNTIME_RESOURCES)},
        "securityContext": deepcopy(_CONTAINER_SECURITY),
        "volumeMounts": [{"name": "qwen-runtime", "mountPath": RUNTIME_MOUNT}],
    }


def _fetch_containers(source: EngineSource, identity: PodIdentity, plan: Plan, runtime: RuntimeImage) -> list[Manifest]:
    if source.fetch is None and not source.adapter_fetches:
        return []
    common = {
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "securityContext": deepcopy(_CONTAINER_SECURITY),
    }
    compiled = model_cache.compile_folder(plan) if model_cache.keeps_compiled(source) else ""
    shared = any(mount["mountPath"] == FETCHED for mount in source.mounts)
    listed = next(iter(list_parts(source.adapters, plan.nodes_per_replica).mounts), None) if shared else None
    return [model_cache.fetch_container(source, identity.owner.namespace, common, compiled, listed)]


def _engine_container(spec: Spec, plan: Plan, source: EngineSource) -> Manifest:
    gpus = {plan.resource_name: str(plan.gpus_per_node)}
    resources = spec.pod.resources
    # As everywhere in Kubernetes, a limit without a request is also the request. The API server rejects a limit that is
    # below our request.
    host = {"cpu": f"{plan.cpu_millis}m", "memory": f"{plan.host_memory_bytes // 1024}Ki"}
    requests = {**host, **resources.limits, **resources.requests, **gpus}
    before, after = own_mounts(plan, source)
    mounts = [*before, *(dict(mount) for mount in spec.pod.volume_mounts), *after]
    group = group_parts(plan.nodes_per_replica)
    prestop = ["python3", RUNTIME, "prestop", "--seconds", str(_PRESTOP_SECONDS)]
    return {
        "name": names.ENGINE_CONTAINER,
        "image": plan.engine_image,
        "imagePullPolicy": "IfNotPresent",
        "command": _command(spec, plan, source),
        "env": [*(_variable(variable) for variable in _environment(plan)), *group.env],
        "ports": [{"name": "http", "containerPort": names.ENGINE_PORT, "protocol": "TCP"}],
        "resources": {"requests": requests, "limits": {**resources.limits, **gpus}},
        "securityContext": deepcopy(_CONTAINER_SECURITY),
        **_probes(plan, _group_seconds(plan, source)),
        "lifecycle": {"preStop": {"exec": {"command": prestop}}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def own_mounts(plan: Plan, source: EngineSource) -> tuple[list[Manifest], list[Manifest]]:
    """The operator's own mounts in the engine: those before and those after the user's."""
    nodes = plan.nodes_per_replica
    before: list[Manifest] = [
        {"name": "qwen-runtime", "mountPath": RUNTIME_MOUNT, "readOnly": True},
        {"name": "home", "mountPath": _HOME},
        {"name": "tmp", "mountPath": "/tmp"},
        *([{"name": "shm", "mountPath": "/dev/shm"}] if plan.shm_bytes else []),
        *(dict(mount) for mount in source.mounts),
    ]
    return before, [*group_parts(nodes).mounts, *list_parts(source.adapters, nodes).mounts]


def _command(spec: Spec, plan: Plan, source: EngineSource) -> list[str]:
    """The command. SGLang runs as a child of the runtime, because as process 1 it ignores SIGTERM while it loads."""
    group = group_command(plan.nodes_per_replica, _group_seconds(plan, source))
    hold = [f"--hold={lock}" for lock in model_cache.locks(source, plan.nodes_per_replica)]
    hold += [f"--compile-cache={model_cache.COMPILE_MOUNT}"] if model_cache.keeps_compiled(source) else []
    hold += list_parts(source.adapters, plan.nodes_per_replica).launch
    engine = [
        "python3",
        "-m",
        "sglang.launch_server",
        f"--model-path={source.model_path}",
        f"--served-model-name={spec.model}",
        "--host=0.0.0.0",
        f"--port={names.ENGINE_PORT}",
        *plan.args,
    ]
    return ["python3", RUNTIME, "launch", *hold, *group.launch, "--", *_literal(engine), *group.engine]


def _environment(plan: Plan) -> tuple[EnvVar, ...]:
    # torch asks for the user's name, and the image's passwd file has no entry for the user id.
    base = {
        "HOME": _HOME,
        "USER": "qwen",
        "LOGNAME": "qwen",
        "HF_HOME": f"{_HOME}/huggingface",
        "SGLANG_CACHE_DIR": f"{_HOME}/sglang",
    }
    merged = {name: EnvVar(name, value) for name, value in base.items()}
    merged |= {variable.name: variable for variable in plan.env}
    return tuple(merged.values())


def _variable(variable: EnvVar) -> Manifest:
    value = None if variable.value is None else expansion.escaped(variable.value)
    return {"name": variable.name, **_present(value=value, valueFrom=variable.value_from)}


def _literal(command: Sequence[str]) -> list[str]:
    return [expansion.escaped(word) for word in command]


def _group_seconds(plan: Plan, source: EngineSource) -> int:
    fetched = plan.weight_bytes_per_rank * plan.gpus_per_replica if source.fetch else 0
    return group_seconds(plan.nodes_per_replica, fetched)


def _probes(plan: Plan, waits: int) -> Manifest:
    """/ready is a flag and answers at once. /health generates a token, so only it notices a hung scheduler.

    `waits`: how many seconds the engine may wait for the other pods of its replica.
    """
    ready = {"path": "/ready", "port": "http", "scheme": "HTTP"}
    health = {"path": "/health", "port": "http", "scheme": "HTTP"}
    attempts = math.ceil((plan.startup_seconds * _STARTUP_FACTOR + waits) / _STARTUP_PERIOD)
    return {
        "startupProbe": {
            "httpGet": ready,
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": 2,
            "failureThreshold": attempts,
        },
        "readinessProbe": {"httpGet": dict(ready), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {"httpGet": health, "periodSeconds": 60, "timeoutSeconds": 30, "failureThreshold": 5},
    }


def _engine_volumes(spec: Spec, plan: Plan, source: EngineSource) -> list[Manifest]:
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{plan.shm_bytes // 1024}Ki"}}
    return [
        {"name": "qwen-runtime", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        *([shm] if plan.shm_bytes else []),
        *(dict(volume) for volume in source.volumes),
        *(dict(volume) for volume in spec.pod.volumes),
        *group_parts(plan.nodes_per_replica).volumes,
        *list_parts(source.adapters, plan.nodes_per_replica).volumes,
    ]


def _present(**members: Any) -> Manifest:
    """The members that are not empty, because the API server does not store empty ones."""
    return {key: value for key, value in members.items() if value}
