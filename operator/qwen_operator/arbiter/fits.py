"""Whether a node takes a pod, by the rules of kube-scheduler that the operator can check. Pure.

A pod that finds no place makes kube-scheduler end pods of a lower priority, whatever it lacks. So beside GPUs also
CPU, memory and the number of pods count, and the node affinity (`replicas.node_affinity`). Rules about other pods
(affinity between pods, spread over zones) are not checked: `depends_on_pods` says that a pod has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from qwen_operator import objects
from qwen_operator.manifests.kept import ROOM
from qwen_operator.manifests.names import LABEL_REPLICA, Manifest
from qwen_operator.manifests.quantities import shown
from qwen_operator.replicas.places import HOST_PORT
from qwen_operator.replicas.requests import Amounts, add, amounts, resources_of

HOSTNAME = "kubernetes.io/hostname"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def requested(pod: Manifest) -> Amounts:
    """What the pod takes of its node, by resource, with itself under `pods`."""
    ports = {HOST_PORT: Decimal(1)} if objects.mapping(pod, "spec").get("hostNetwork") is True else {}
    return {**resources_of(pod), **ports, "pods": Decimal(1)}


def lacking(node: Manifest, running: Iterable[Manifest], pods: Iterable[Manifest]) -> str:
    """Of what the node of the store has too little for these pods beside those that run there or will; "" if it has
    room."""
    used: Amounts = {}
    for one in running:
        if not objects.has_ended(one):
            add(used, requested(one))
    needs: Amounts = {}
    for one in pods:
        add(needs, requested(one))
    offered = amounts({**objects.mapping(node, "status", "allocatable"), **objects.mapping(node, ROOM), HOST_PORT: 1})
    for name, need in needs.items():
        has, most = used.get(name, Decimal(0)), offered.get(name, Decimal(0))
        if has + need > most:
            return f"{shown(has)} of {shown(most)} {name} are used, and {shown(need)} needed"
    return ""


def depends_on_pods(pod: Manifest) -> bool:
    """Whether it depends on other pods where the pod may run. That the pods of one replica keep apart is no matter."""
    affinity = objects.mapping(pod, "spec", "affinity")
    terms: Sequence[objects.Object] = [
        term
        for kind in ("podAffinity", "podAntiAffinity")
        for term in objects.members(affinity, kind, _REQUIRED)
        if LABEL_REPLICA not in objects.mapping(term, "labelSelector", "matchLabels")
    ]
    spread = objects.members(pod, "spec", "topologySpreadConstraints")
    return bool(terms) or any(one.get("whenUnsatisfiable") != "ScheduleAnyway" for one in spread)
