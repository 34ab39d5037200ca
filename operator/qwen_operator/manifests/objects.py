"""The children that are not pods: the PodDisruptionBudget and the ControllerRevision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest, Owner


def disruption_budget(owner: Owner, min_available: int) -> Manifest:
    """The budget: an eviction must leave `min_available` ready replicas.

    `minAvailable` is an integer, because with `maxUnavailable` Kubernetes forbids every eviction of pods with a custom
    owner. Pods that are not ready, or are draining, can always be evicted.
    """
    return _budget(owner, names.budget_name(owner.name), names.engine_labels(owner.name), min_available)


def worker_disruption_budget(owner: Owner, min_available: int) -> Manifest:
    """The budget of the pods that do not lead their replica. Kubernetes evicts no pod that has two budgets."""
    return _budget(owner, names.worker_budget_name(owner.name), names.worker_labels(owner.name), min_available)


def _budget(owner: Owner, name: str, selected: dict[str, str], min_available: int) -> Manifest:
    labels = names.common_labels(owner, name="qwen-operator", component="engine")
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(owner, name, labels),
        "spec": {
            "minAvailable": min_available,
            "selector": {"matchLabels": selected},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def controller_revision(owner: Owner, revision: str, number: int, data: Mapping[str, Any]) -> Manifest:
    """The immutable record of what a revision runs. `data` is any JSON object. `number` grows with each revision."""
    labels = names.common_labels(owner, name="qwen-operator", component="revision")
    labels[names.LABEL_REVISION] = revision
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": names.metadata(owner, names.controller_revision_name(owner.name, revision), labels),
        "revision": number,
        "data": dict(data),
    }
