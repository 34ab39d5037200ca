"""The checks: functions from `ClusterFacts` to findings. Pure."""

from collections.abc import Callable, Iterable, Sequence

from qwen_operator.doctor.checks import (
    admission,
    definition,
    gateway,
    gpus,
    hub,
    kubernetes,
    mesh,
    monitoring,
    operators,
    pod_security,
    quotas,
    rights,
    storage,
)
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark

Check = Callable[[ClusterFacts], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "kubernetes": kubernetes.check,
    "gpus": gpus.check,
    "device-plugin": gpus.check_plugin,
    "storage": storage.check,
    "definition": definition.check,
    "operator": operators.check,
    "lease": operators.check_lease,
    "second-release": operators.check_others,
    "rights": rights.check,
    "namespaces": quotas.check_namespaces,
    "quota": quotas.check_quotas,
    "limit-range": quotas.check_limit_ranges,
    "pod-security": pod_security.check,
    "admission": admission.check,
    "dry-run": admission.check_tried,
    "mesh": mesh.check,
    "hub": hub.check,
    "monitoring": monitoring.check,
    "gateway": gateway.check,
}
"""Every check by the name of its findings."""


def run(facts: ClusterFacts) -> Sequence[Finding]:
    """The findings of all checks. A check that fails itself becomes a finding too."""
    return [finding for name, check in CHECKS.items() for finding in _guarded(name, check, facts)]


def _guarded(name: str, check: Check, facts: ClusterFacts) -> list[Finding]:
    try:
        return list(check(facts))
    except Exception as error:
        return [
            Finding(Mark.UNKNOWN, name, f"not checked: this check failed ({type(error).__name__}); please report it")
        ]
