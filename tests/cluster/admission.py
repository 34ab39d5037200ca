"""Takes away the policy about tenants for a while, to make what was there before an upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.qd import qd
from tests.testbed.kubectl import Kubectl, Manifest, wait_for

POLICY = "qwen-system.qwen-tenants"


def refuses(kubectl: Kubectl, manifest: Manifest) -> bool:
    """Whether the API server refuses the object."""
    try:
        kubectl.refused(manifest)
    except AssertionError:
        return False
    return True


@contextmanager
def without_policy(kubectl: Kubectl, space: str) -> Iterator[None]:
    """The API server accepts everything. Other tests must not run meanwhile."""
    bad = qd(space, "probe", model="Qwen/Qwen1.5-0.5B-Chat", pod={"serviceAccountName": "builder"})
    binding = kubectl.json("get", "validatingadmissionpolicybinding", POLICY)
    kubectl.run("delete", "validatingadmissionpolicybinding", POLICY)
    try:
        wait_for("the policy is gone", lambda: not refuses(kubectl, bad))
        yield
    finally:
        kubectl.apply_as_helm(binding)
    wait_for("the policy is back", lambda: refuses(kubectl, bad))
