"""The pods of a replica: the template that a revision pins, and the pods made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.spec import Spec
from qwen_operator.manifests import model_cache, names
from qwen_operator.manifests.adapters import list_parts
from qwen_operator.manifests.engine_container import RUNTIME_MOUNT, engine_container, engine_volumes
from qwen_operator.manifests.group_pods import apart, as_member
from qwen_operator.manifests.multi_node import near
from qwen_operator.manifests.names import Manifest, Owner, PodIdentity
from qwen_operator.manifests.pod_parts import (
    CONTAINER_SECURITY,
    GPU_TOLERATION,
    IMAGE_RUNTIME,
    RuntimeImage,
    common_spec,
    pod_labels,
    present,
)
from qwen_operator.manifests.quantities import canonical_quantities
from qwen_operator.planning.adapters import FETCHED
from qwen_operator.planning.types import EngineSource, Plan

# For the preStop wait, SGLang's own steps of 5 s, and its exit.
_GRACE_MARGIN_SECONDS = 30
# Every pod gets its own grace period when it is created, so this value has no effect. Another value here would make
# every pinned template differ from a new one.
_TEMPLATE_GRACE_SECONDS = 630
_RUNTIME_RESOURCES = {"cpu": "250m", "memory": "128Mi"}


def engine_template(
    identity: PodIdentity, spec: Spec, plan: Plan, source: EngineSource, runtime: RuntimeImage
) -> Manifest:
    """The pod of every replica, without its name: {"metadata": {labels, annotations}, "spec": {...}}.

    A ControllerRevision pins it.
    """
    source = model_cache.mounted(source, identity.owner.namespace)
    source = model_cache.with_compile_cache(source, plan)
    labels = pod_labels(identity, names.ROLE_ENGINE) | {names.LABEL_ROUTABLE: "true"}
    pod = {
        **common_spec(spec.pod, runtime, source, (GPU_TOLERATION, *plan.tolerations)),
        **present(
            nodeSelector={**plan.selector, **spec.pod.node_selector},
            runtimeClassName=spec.pod.runtime_class_name,
            topologySpreadConstraints=[dict(item) for item in spec.pod.topology_spread_constraints],
        ),
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": _TEMPLATE_GRACE_SECONDS,
        "initContainers": [_runtime_container(runtime), *_fetch_containers(source, identity, plan, runtime)],
        "containers": [engine_container(spec, plan, source)],
        "volumes": engine_volumes(spec, plan, source),
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


def _runtime_container(runtime: RuntimeImage) -> Manifest:
    return {
        "name": names.RUNTIME_CONTAINER,
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "command": ["python3", IMAGE_RUNTIME, "install", RUNTIME_MOUNT],
        # Equal requests and limits satisfy every ResourceQuota and LimitRange ratio. They cost nothing: a pod needs the
        # larger of its init containers and its engine.
        "resources": {"requests": dict(_RUNTIME_RESOURCES), "limits": dict(_RUNTIME_RESOURCES)},
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "volumeMounts": [{"name": "qwen-runtime", "mountPath": RUNTIME_MOUNT}],
    }


def _fetch_containers(source: EngineSource, identity: PodIdentity, plan: Plan, runtime: RuntimeImage) -> list[Manifest]:
    if source.fetch is None and not source.adapter_fetches:
        return []
    common = {
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "securityContext": deepcopy(CONTAINER_SECURITY),
    }
    compiled = model_cache.compile_folder(plan) if model_cache.keeps_compiled(source) else ""
    shared = any(mount["mountPath"] == FETCHED for mount in source.mounts)
    listed = next(iter(list_parts(source.adapters, plan.nodes_per_replica).mounts), None) if shared else None
    return [model_cache.fetch_container(source, identity.owner.namespace, common, compiled, listed)]
