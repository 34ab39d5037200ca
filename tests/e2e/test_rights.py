"""The chart's roles are exactly what is used: no request was refused, and no granted verb stayed unused.

Runs last, over the audit log of everything that the other tests had the operator and the gateway do.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.testbed.audit import AuditLog, Request
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest

pytestmark = pytest.mark.e2e

Grant = tuple[str, str]
SINCE = datetime.now(UTC).isoformat()
"""When the end-to-end tests began: this module is imported before the first of them runs."""

UNSEEN = {
    # Asked about by the API server itself, where owner references need permission: it is in no audit log.
    ("update", "qwendeployments/finalizers"),
    # Reading a child whose name turned out to be taken; whether two operators ever meet so is chance.
    ("get", "pods"),
    ("get", "controllerrevisions"),
    ("get", "poddisruptionbudgets"),
}


def grants(kubectl: Kubectl, release: Release, account: str) -> set[Grant]:
    """(verb, resource) of all roles that are bound to a service account of the release."""
    bindings: list[Manifest] = kubectl.json("get", "clusterrolebindings,rolebindings", "-A")["items"]
    granted: set[Grant] = set()
    for binding in bindings:
        if not any(_is(subject, release, account) for subject in binding.get("subjects") or ()):
            continue
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        space = ("-n", binding["metadata"]["namespace"]) if kind == "Role" else ()
        for rule in kubectl.json("get", kind.lower(), name, *space)["rules"]:
            granted |= {(verb, resource) for verb in rule["verbs"] for resource in rule.get("resources", ())}
    return granted


def _is(subject: Manifest, release: Release, account: str) -> bool:
    return (subject["kind"], subject.get("namespace"), subject["name"]) == (
        "ServiceAccount",
        release.namespace,
        account,
    )


NO_RIGHTS = ("being terminated", "violates PodSecurity")
"""Words of a 403: nobody may create anything in a namespace that ends, or a pod that Pod Security forbids."""


def refused(requests: list[Request]) -> list[str]:
    """Requests that lacked a right."""
    lacked = [request for request in requests if request.code in (401, 403)]
    return [str(request) for request in lacked if not any(words in request.message for words in NO_RIGHTS)]


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_no_right_is_missing_and_none_is_too_many(kubectl: Kubectl, bed: Cluster, release: Release, part: str) -> None:
    account = getattr(release, part)
    user = f"system:serviceaccount:{release.namespace}:{account}"
    mine = [request for request in AuditLog(bed.audit_log, whole=True).read() if request.user == user]

    # The tests of the chart's life before take rights away from operators that still run.
    assert refused([request for request in mine if request.time >= SINCE]) == []
    granted = grants(kubectl, release, account)
    assert granted
    used = {(request.verb, request.resource) for request in mine}
    assert granted - used <= UNSEEN
