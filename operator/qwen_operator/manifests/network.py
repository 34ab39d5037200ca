"""The NetworkPolicies of engines: one closes those of a namespace, others open replicas over several nodes to
themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest

CLOSED_ROLES = (names.ROLE_ENGINE, names.ROLE_ENGINE_WORKER, names.ROLE_INSPECTION, names.ROLE_FETCH)
"""The roles of the pods in the namespaces of the QwenDeployments."""
_LABELS = {
    "app.kubernetes.io/name": "qwen-operator",
    "app.kubernetes.io/component": "network-policy",
    "app.kubernetes.io/part-of": "qwen-operator",
    "app.kubernetes.io/managed-by": "qwen-operator",
}


def engine_policy(namespace: str, name: str, ingress: Sequence[Mapping[str, Any]]) -> Manifest:
    """The policy for the engine, inspection and fetch pods of `namespace`: only `ingress` may connect to them.

    One release has one policy of one `name` in each namespace. Kubernetes adds up the policies of several releases, so
    they do not contradict each other.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(_LABELS)},
        "spec": {
            "podSelector": {
                "matchExpressions": [{"key": names.LABEL_ROLE, "operator": "In", "values": list(CLOSED_ROLES)}]
            },
            "policyTypes": ["Ingress"],
            **({"ingress": [dict(rule) for rule in ingress]} if ingress else {}),
        },
    }


def group_policy(leader: Mapping[str, Any], name: str, ingress: Sequence[Mapping[str, Any]]) -> Manifest:
    """The policy that lets the pods of one replica reach each other on all TCP ports. `leader` is its first pod.

    NCCL and gloo listen on random ports. A policy that selects a pod closes it to everybody else, so this one repeats
    `ingress`: then it holds nobody back that `engine_policy` lets in. The policy belongs to the first pod. So
    Kubernetes deletes it with the replica, and the operator needs no right to delete policies by any name.
    """
    meta = leader["metadata"]
    replica = str(meta["labels"][names.LABEL_REPLICA])
    members = {
        "matchLabels": {names.LABEL_DEPLOYMENT: meta["labels"][names.LABEL_DEPLOYMENT], names.LABEL_REPLICA: replica}
    }
    owner = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"], "controller": False}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": group_policy_name(name, replica, meta["uid"]),
            "namespace": meta["namespace"],
            "labels": dict(_LABELS),
            "ownerReferences": [owner],
        },
        "spec": {
            "podSelector": members,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": members}], "ports": [{"protocol": "TCP"}]}, *map(dict, ingress)],
        },
    }


def group_policy_name(name: str, replica: str, uid: str) -> str:
    """The name for one life of a replica: the policy of an earlier one of its name may still be there."""
    return f"{name}.{replica}.{uid[:8]}"
