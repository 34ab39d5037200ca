"""What engine pods and inspection pods have in common. Pure.

Both meet the restricted Pod Security profile. The user's additions in `spec.pod` win, but they cannot remove the labels
and annotations by which the operator recognizes its pods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.pod import GPU_RESOURCE, Pod
from qwen_operator.manifests import expansion, names
from qwen_operator.manifests.names import Manifest, PodIdentity
from qwen_operator.planning.types import EngineSource

IMAGE_RUNTIME = "/opt/qwen-operator/qwen-runtime.pyz"
_USER = 65532
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists"}


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


def pod_security(pod: Pod) -> Manifest:
    """The security context of a pod: the user's fields win."""
    return {**deepcopy(POD_SECURITY), **(pod.security_context or {})}


def pod_labels(identity: PodIdentity, role: str) -> dict[str, str]:
    """The labels by which the operator recognizes its pods."""
    labels = names.common_labels(identity.owner, name="sglang", component=role)
    return labels | {names.LABEL_ROLE: role, names.LABEL_REVISION: identity.revision}


def common_spec(
    pod: Pod, runtime: RuntimeImage, source: EngineSource, tolerations: tuple[Mapping[str, Any], ...]
) -> Manifest:
    """The common part of engine and inspection pods: identity, placement and access, with the user's additions."""
    of_source = source.image.pull_secrets if source.image else ()
    secrets = dict.fromkeys((*runtime.pull_secrets, *(secret.name for secret in pod.image_pull_secrets), *of_source))
    optional = present(
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
        "securityContext": pod_security(pod),
        "tolerations": [dict(item) for item in (*tolerations, *pod.tolerations)],
    }


def env_entry(variable: EnvVar) -> Manifest:
    """The variable as an entry of `env`, in which the kubelet replaces nothing."""
    value = None if variable.value is None else expansion.escaped(variable.value)
    return {"name": variable.name, **present(value=value, valueFrom=variable.value_from)}


def literal(command: Sequence[str]) -> list[str]:
    """The command in a form in which the kubelet replaces nothing."""
    return [expansion.escaped(word) for word in command]


def present(**members: Any) -> Manifest:
    """The members that are not empty, because the API server does not store empty ones."""
    return {key: value for key, value in members.items() if value}
