"""What the pods of a replica over several nodes have beside those of a replica on one node.

The template of a revision is the same for all ranks: a pod knows its rank from a label, and the address of the first
pod from an annotation. So nothing has to be known when a pod is created that only its node will decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest

GROUP_SECONDS = 1200
"""How long a pod waits for the others of its replica before its container ends and starts again.

A pull of SGLang's image takes minutes, and on some nodes many.
"""

_SLOW_BYTES_PER_SECOND = 50_000_000
"""A slow download of a model."""

_MOUNT = "/qwen-group"
_VOLUME = "qwen-group"
_FILE = "leader"
_RANK = "QWEN_NODE_RANK"
_HOSTNAME = "kubernetes.io/hostname"
# Kueue admits all pods of a group together (kueue.sigs.k8s.io/docs/tasks/run/plain_pods). The user names the queue.
_KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
_KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
_KUEUE_TOTAL = "kueue.x-k8s.io/pod-group-total-count"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass(frozen=True, slots=True)
class GroupCommand:
    """Options of the runtime's launch, and options of SGLang."""

    launch: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupParts:
    """Additions to the engine container and to the pod."""

    env: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    volumes: tuple[Manifest, ...] = ()


def group_seconds(nodes: int, fetched_bytes: int) -> int:
    """How long a pod waits for the others of a replica on so many nodes; 0 for one node.

    `fetched_bytes`: the size of the model, if each pod fetches it into the cache of its node before its engine starts.
    One node may have it already, and another one has to download all of it.
    """
    return 0 if nodes == 1 else GROUP_SECONDS + math.ceil(fetched_bytes / _SLOW_BYTES_PER_SECOND)


def group_command(nodes: int, seconds: int) -> GroupCommand:
    """The options for a replica on so many nodes, none for one node. The kubelet puts the rank in.

    `seconds` are those of `group_seconds`.

    The runtime adds --dist-init-addr when it knows the address.
    """
    if nodes == 1:
        return GroupCommand()
    launch = (
        f"--group-size={nodes}",
        f"--group-rank=$({_RANK})",
        f"--group-seconds={seconds}",
        f"--group-leader={_MOUNT}/{_FILE}",
    )
    return GroupCommand(launch, (f"--node-rank=$({_RANK})",))


def group_parts(nodes: int) -> GroupParts:
    """The variables and the volume by which a pod learns its place in a replica on so many nodes."""
    if nodes == 1:
        return GroupParts()
    item = {"path": _FILE, "fieldRef": _field(f"metadata.annotations['{names.ANNOTATION_GROUP_LEADER}']")}
    return GroupParts(
        env=(
            _variable(_RANK, f"metadata.labels['{names.LABEL_RANK}']"),
            _variable("QWEN_POD_NAME", "metadata.name"),
            _variable("QWEN_POD_UID", "metadata.uid"),
            _variable("QWEN_POD_IP", "status.podIP"),
        ),
        mounts=({"name": _VOLUME, "mountPath": _MOUNT, "readOnly": True},),
        volumes=({"name": _VOLUME, "downwardAPI": {"items": [item]}},),
    )


def _variable(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": _field(path)}}


def _field(path: str) -> Manifest:
    return {"apiVersion": "v1", "fieldPath": path}


def as_member(pod: Mapping[str, Any], replica: str, rank: int, pods: int) -> Manifest:
    """The pod as the member of this rank of a replica of `pods` pods. `pod` stays as it is."""
    metadata, spec = pod["metadata"], pod["spec"]
    labels = {**metadata["labels"], names.LABEL_REPLICA: replica, names.LABEL_RANK: str(rank)}
    if rank:
        labels[names.LABEL_ROLE] = names.ROLE_ENGINE_WORKER
        labels.pop(names.LABEL_ROUTABLE, None)
    annotations = {**metadata["annotations"], names.ANNOTATION_REPLICA_PODS: str(pods)}
    if _KUEUE_QUEUE in labels and _KUEUE_GROUP not in labels:
        labels[_KUEUE_GROUP] = replica
        annotations[_KUEUE_TOTAL] = str(pods)
    member = {**spec, "schedulingGates": [{"name": names.GROUP_GATE}]}
    if rank:
        member["containers"] = [_worker(container) for container in spec["containers"]]
    return {**pod, "metadata": {**metadata, "labels": labels, "annotations": annotations}, "spec": member}


def apart(pod: Manifest, replica: str) -> Manifest:
    """The pod, on no node with another pod of its replica. `pod` stays as it is."""
    affinity = dict(pod["spec"].get("affinity") or {})
    term = {"labelSelector": {"matchLabels": {names.LABEL_REPLICA: replica}}, "topologyKey": _HOSTNAME}
    anti = dict(affinity.get("podAntiAffinity") or {})
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    anti[required] = [*(anti.get(required) or ()), term]
    return {**pod, "spec": {**pod["spec"], "affinity": {**affinity, "podAntiAffinity": anti}}}


def _worker(container: Mapping[str, Any]) -> Manifest:
    """The engine of rank 1 and higher. SGLang's ranks but the first serve /health and no /ready."""
    if container["name"] != names.ENGINE_CONTAINER:
        return dict(container)
    probes = {
        name: {**container[name], "httpGet": {**container[name]["httpGet"], "path": "/health"}}
        for name in _PROBES
        if name in container
    }
    return {**container, **probes}
