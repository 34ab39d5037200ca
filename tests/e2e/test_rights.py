"""The chart's roles are exactly what is used: no request was refused, and no granted verb stayed unused.

Runs last, over the audit log of everything that the other tests had the operator and the gateway do.
"""

from __future__ import annotations

import pytest

from tests.testbed.audit import AuditLog, Request
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest

pytestmark = pytest.mark.e2e

Grant = tuple[str, str]


def grants(kubectl: Kubectl, release: Release, account: str) -> set[Grant]:
    """(verb, resource) of all roles that are bound to a service account of the release."""
    bindings: list[Manifest] = kubectl.json("get", "clusterrolebindings,rolebindings", "-A")["items"]
    found: set[Grant] = set()
    for binding in bindings:
        if not any(_is(subject, release, account) for subject in binding.get("subjects") or ()):
            continue
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        space = ("-n", binding["metadata"]["namespace"]) if kind == "Role" else ()
        for rule in kubectl.json("get", kind.lower(), name, *space)["rules"]:
            found |= {(verb, resource) for verb in rule["verbs"] for resource in rule.get("resources", ())}
    return found


def _is(subject: Manifest, release: Release, account: str) -> bool:
    return (subject["kind"], subject.get("namespace"), subject["name"]) == (
        "ServiceAccount",
        release.namespace,
        account,
    )


def _done(request: Request) -> bool:
    # A watch is noted when it ends, long after it was allowed.
    return request.code < 300 and request.verb != "watch"


def refused(requests: list[Request]) -> list[str]:
    """Requests that lacked a right. Not those into a namespace that is being deleted, where nobody may create, nor an
    operator's farewell to its Lease after an uninstallation has taken the rights before it has taken the pod."""
    last = {request.pod: index for index, request in enumerate(requests) if _done(request)}
    return [
        str(request)
        for index, request in enumerate(requests)
        if request.code in (401, 403)
        and "being terminated" not in request.message
        and not (request.resource == "leases" and last.get(request.pod, -1) < index)
    ]


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_no_right_is_missing_and_none_is_too_many(kubectl: Kubectl, bed: Cluster, release: Release, part: str) -> None:
    account = getattr(release, part)
    user = f"system:serviceaccount:{release.namespace}:{account}"
    mine = [request for request in AuditLog(bed.audit_log, whole=True).read() if request.user == user]

    assert refused(mine) == []
    granted = grants(kubectl, release, account)
    assert granted
    used = {(request.verb, request.resource) for request in mine}
    # Asked about by the API server itself, where owner references need permission; it is in no audit log.
    assert granted - used == {("update", "qwendeployments/finalizers")} & granted
