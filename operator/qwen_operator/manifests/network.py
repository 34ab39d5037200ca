"""The NetworkPolicy that closes the engines of one namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest

CLOSED_ROLES = (names.ROLE_ENGINE, names.ROLE_ENGINE_WORKER, names.ROLE_INSPECTION)
"""The roles of the pods in the namespaces of the QwenDeployments."""
_LABELS = {
    "app.kubernetes.io/name": "qwen-operator",
    "app.kubernetes.io/component": "network-policy",
    "app.kubernetes.io/part-of": "qwen-operator",
    "app.kubernetes.io/managed-by": "qwen-operator",
}


def engine_policy(namespace: str, name: str, ingress: Sequence[Mapping[str, Any]]) -> Manifest:
    """The policy for the engine and inspection pods of `namespace`: only `ingress` may connect to them.

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
