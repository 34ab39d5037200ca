"""The life of a release on the real API server, by the real Helm: upgraded, rolled back, taken away, put back, and
beside another one. Whatever happens to the release, the engines stay as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tests.cluster.chart import CHART, CRD, POOL, TESTBED, Manifest, install_beside, live, newer_chart
from tests.qd import MODEL, own_namespace, pods, simulated, wait_load, wait_ready
from tests.testbed.audit import AuditLog
from tests.testbed.bed import Release, install
from tests.testbed.cache import StepFailed
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, condition, wait_for
from tests.testbed.ownership import owned
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"
PASSED = "ok      http"
CHILDREN = ("pods", "controllerrevisions", "poddisruptionbudgets")


def identities(kubectl: Kubectl, namespace: str, kinds: tuple[str, ...] = CHILDREN) -> dict[tuple[str, str], str]:
    """(kind, name) -> uid of the objects in a namespace, for pods with the restarts of their containers."""
    ids = {}
    for kind in kinds:
        for item in kubectl.list(kind, namespace):
            restarts = [c["restartCount"] for c in item.get("status", {}).get("containerStatuses", [])]
            ids[kind, item["metadata"]["name"]] = f"{item['metadata']['uid']} {restarts}"
    return ids


def quiet(kubectl: Kubectl, namespace: str) -> None:
    """Wait until no pod of a release is on its way out: an operator that ends may still ask under its old rights."""
    wait_for(
        f"no pod in {namespace} is ending",
        lambda: all("deletionTimestamp" not in pod["metadata"] for pod in kubectl.list("pods", namespace)),
        120,
    )


@dataclass(frozen=True, slots=True)
class Engines:
    """A namespace in which a deployment `stay` of one replica serves, and its objects as they were when it began to."""

    kubectl: Kubectl
    space: str
    before: dict[tuple[str, str], str]

    def changed(self) -> set[tuple[str, str]]:
        """Objects that are no longer the same, or gone."""
        now = identities(self.kubectl, self.space)
        return {key for key, identity in self.before.items() if now.get(key) != identity}


@pytest.fixture(scope="module")
def nodes(bed: Cluster) -> Iterator[OwnNodes]:
    """Nodes whose engines answer: a gateway that starts waits half a minute for engines that do not."""
    with bed.own_nodes(Pool(L4, gpus=8, nodes=2), answering=True) as nodes, bed.exporter() as exporter:
        exporter.say(MODEL)
        yield nodes


def engine(nodes: OwnNodes, space: str, name: str) -> Manifest:
    """A QwenDeployment of one replica that answers."""
    return simulated(space, name, L4, pod=nodes.pod)


@pytest.fixture(scope="module")
def serving(kubectl: Kubectl, release: Release, nodes: OwnNodes) -> Iterator[str]:
    """The namespace of a deployment `stay` of one replica that has long been serving."""
    with own_namespace(kubectl, "t") as space:
        kubectl.apply(engine(nodes, space, "stay"))
        wait_ready(kubectl, space, "stay")
        wait_load(kubectl, space, "stay")
        yield space


@pytest.fixture
def engines(kubectl: Kubectl, serving: str) -> Engines:
    return Engines(kubectl, serving, identities(kubectl, serving))


@pytest.mark.alone
def test_an_upgrade_brings_a_new_field_and_restarts_nothing(
    kubectl: Kubectl, bed: Cluster, release: Release, engines: Engines, tmp_path: Path
) -> None:
    manifest = simulated(engines.space, "new", L4, later=1)
    system = ("pods",)
    assert 'unknown field "spec.later"' in kubectl.refused(manifest)
    quiet(kubectl, release.namespace)
    before = identities(kubectl, release.namespace, system)
    upgrade = (
        "upgrade",
        release.name,
        str(newer_chart(tmp_path)),
        "-n",
        release.namespace,
        "--reset-then-reuse-values",
    )
    try:
        live(bed, *upgrade, "--wait", "--timeout", "4m")
        wait_for("the new field is accepted", lambda: accepted(kubectl, manifest), 30)
        wait_for("it is explained", lambda: "of the future" in kubectl.run("explain", "qd.spec.later"), 30)
        assert engines.changed() == set()
        assert identities(kubectl, release.namespace, system) == before

        live(bed, "rollback", release.name, "-n", release.namespace, "--wait", "--timeout", "4m")
        wait_for("the field is gone", lambda: not accepted(kubectl, manifest), 30)
        assert engines.changed() == set()
        assert identities(kubectl, release.namespace, system) == before
    finally:
        install(bed)
    assert engines.changed() == set()


def accepted(kubectl: Kubectl, manifest: Manifest) -> bool:
    try:
        kubectl.refused(manifest)
    except AssertionError:
        return True
    return False


@pytest.mark.alone
def test_settled_means_no_write_also_over_a_restart(
    kubectl: Kubectl, bed: Cluster, release: Release, engines: Engines
) -> None:
    audit = AuditLog(bed.audit_log)
    kubectl.run("rollout", "restart", f"deployment/{release.operator}", "-n", release.namespace)
    kubectl.run("rollout", "status", f"deployment/{release.operator}", "-n", release.namespace, "--timeout=120s")
    time.sleep(15)

    # The one request is the key Secret, which the operator may create but never read: it is refused with 409.
    assert [
        str(w)
        for w in audit.writes(release.operator_user, engines.space, release.namespace)
        if (w.verb, w.resource) != ("create", "secrets")
    ] == []


@pytest.mark.alone
def test_another_operator_pod_takes_over_and_the_engines_stay(
    kubectl: Kubectl, bed: Cluster, release: Release, engines: Engines, space: str
) -> None:
    """An upgrade that replaces the operator's pods: one after the other, and the Lease changes hands."""
    audit = AuditLog(bed.audit_log)
    holder = lease_holder(kubectl, release)
    try:
        install(bed, "--set-string", "operator.podAnnotations.round=2")
        wait_for("the Lease has a new holder", lambda: lease_holder(kubectl, release) not in ("", holder), 60)
        kubectl.apply(simulated(space, "late", L4))
        wait_ready(kubectl, space, "late")
    finally:
        install(bed)
    assert engines.changed() == set()
    assert [str(write) for write in audit.writes(release.operator_user, engines.space)] == []


def lease_holder(kubectl: Kubectl, release: Release) -> str:
    lease = kubectl.get("lease", release.operator, release.namespace) or {}
    return str(lease.get("spec", {}).get("holderIdentity") or "")


@pytest.mark.alone
def test_an_uninstall_leaves_the_engines_and_an_installation_finds_them_again(
    kubectl: Kubectl, bed: Cluster, release: Release, engines: Engines
) -> None:
    key, crd = release.key(kubectl), kubectl.json("get", "crd", CRD)["metadata"]["uid"]
    try:
        output = live(bed, "uninstall", release.name, "-n", release.namespace, "--wait", "--timeout", "2m")
        assert CRD in output
        wait_for("operator and gateway are gone", lambda: not kubectl.list("pods", release.namespace), 120)
        assert kubectl.list("deployments", release.namespace) == []
        assert kubectl.json("get", "crd", CRD)["metadata"]["uid"] == crd
        assert condition(kubectl.get("qd", "stay", engines.space), "Ready")["status"] == "True"
        assert engines.changed() == set()
        audit = AuditLog(bed.audit_log)
    finally:
        install(bed)

    # Time for every write that a new operator might think of.
    time.sleep(20)
    assert [str(write) for write in audit.writes(release.operator_user, engines.space)] == []
    assert engines.changed() == set()
    assert release.key(kubectl) == key
    # It is taken care of again.
    kubectl.run("scale", "qd", "stay", "-n", engines.space, "--replicas=2")
    kubectl.run("wait", "qd", "stay", "-n", engines.space, "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s")


@dataclass(frozen=True, slots=True)
class Two:
    """Two releases: the usual one, which now serves `mine` alone, and `second`, which serves `other`."""

    first: Release
    second: Release
    mine: str
    other: str
    nodes: OwnNodes


@pytest.fixture(scope="class")
def two(kubectl: Kubectl, bed: Cluster, release: Release, nodes: OwnNodes) -> Iterator[Two]:
    name = f"t-{uuid4().hex[:8]}"
    mine, other, home = f"{name}-a", f"{name}-b", f"{name}-system"
    for each in (mine, other, home):
        kubectl.namespace(each, {"pod-security.kubernetes.io/enforce": "restricted", **owned()})
    second = Release("second", home, "second-operator", "second-gateway", "second-gateway-keys")
    values = {
        "watchNamespaces": [other],
        "gpuPools": [POOL],
        "crds": {"enabled": False},
        "operator": {**TESTBED["operator"], "replicas": 1},
    }
    try:
        install(bed, "--set", f"watchNamespaces={{{mine}}}", "--set-json", f"gpuPools={json.dumps([POOL])}")
        install_beside(bed, second, values)
        quiet(kubectl, release.namespace)
        yield Two(release, second, mine, other, nodes)
    finally:
        live(bed, "uninstall", second.name, "-n", home, "--ignore-not-found")
        kubectl.run("delete", "namespace", mine, other, home, "--wait=false")
        install(bed)


@pytest.mark.alone
class TestTwoReleases:
    """Both confined to namespaces, the CRD owned by the first."""

    def test_each_serves_its_namespace_with_no_right_elsewhere(self, kubectl: Kubectl, bed: Cluster, two: Two) -> None:
        audit = AuditLog(bed.audit_log)
        kubectl.apply(engine(two.nodes, two.mine, "one"), engine(two.nodes, two.other, "two"))
        wait_ready(kubectl, two.mine, "one")
        wait_ready(kubectl, two.other, "two")

        requests = audit.read()
        pods_made = [r for r in requests if (r.verb, r.resource) == ("create", "pods")]
        assert {r.namespace for r in pods_made if r.user == two.first.operator_user} == {two.mine}
        assert {r.namespace for r in pods_made if r.user == two.second.operator_user} == {two.other}
        ours = {
            f"system:serviceaccount:{r.namespace}:{account}"
            for r in (two.first, two.second)
            for account in (r.operator, r.gateway)
        }
        assert [str(r) for r in requests if r.user in ours and r.code == 403] == []
        assert [str(r) for r in requests if r.user in ours and r.resource == "nodes"] == []
        # Roles are all that they have.
        owned = "app.kubernetes.io/part-of=qwen-operator"
        assert kubectl.json("get", "clusterroles,clusterrolebindings", "-l", owned)["items"] == []

    def test_helm_test_passes(self, bed: Cluster, two: Two) -> None:
        output = live(bed, "test", two.second.name, "-n", two.second.namespace, "--logs", "--timeout", "3m")
        assert output.count(PASSED) == 3, output

    def test_one_goes_and_the_other_stays(self, kubectl: Kubectl, bed: Cluster, two: Two) -> None:
        kubectl.apply(engine(two.nodes, two.mine, "stays"), engine(two.nodes, two.other, "left"))
        wait_ready(kubectl, two.mine, "stays")
        wait_ready(kubectl, two.other, "left")
        engines = [Engines(kubectl, name, identities(kubectl, name)) for name in (two.mine, two.other)]

        live(bed, "uninstall", two.second.name, "-n", two.second.namespace, "--wait", "--timeout", "2m")

        owner = kubectl.json("get", "crd", CRD)["metadata"]["annotations"]["meta.helm.sh/release-name"]
        assert owner == two.first.name
        assert [each.changed() for each in engines] == [set(), set()]
        kubectl.run("scale", "qd", "stays", "-n", two.mine, "--replicas=2")
        kubectl.run("wait", "qd", "stays", "-n", two.mine, "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s")
        assert len(pods(kubectl, two.other, "left")) == 1


def test_a_second_owner_of_the_crd_is_refused(kubectl: Kubectl, bed: Cluster, release: Release, space: str) -> None:
    values = {"watchNamespaces": [space], "gpuPools": [POOL]}
    with pytest.raises(StepFailed) as caught:
        live(bed, "install", "third", str(CHART), "-n", space, "--dry-run=server", values={**TESTBED, **values})
    assert CRD in str(caught.value)
    assert "meta.helm.sh/release-name" in str(caught.value)


@pytest.mark.alone
def test_helm_test_passes(bed: Cluster, release: Release) -> None:
    output = live(bed, "test", release.name, "-n", release.namespace, "--logs", "--timeout", "3m")
    assert output.count(PASSED) == 3, output


VIEWER = {("get", ""), ("list", ""), ("watch", ""), ("get", "status"), ("get", "scale")}
EDITOR = VIEWER | {(verb, "") for verb in ("create", "update", "patch", "delete")} | {("patch", "scale")}


@pytest.mark.parametrize(("role", "may"), [("view", VIEWER), ("edit", EDITOR), ("admin", EDITOR)])
def test_the_cluster_s_own_roles(
    kubectl: Kubectl, release: Release, space: str, role: str, may: set[tuple[str, str]]
) -> None:
    user = f"{role}er"
    kubectl.run("create", "rolebinding", role, f"--clusterrole={role}", f"--user={user}", "-n", space)
    wait_for("the role is aggregated", lambda: allowed(kubectl, user, space, ("get", "")), 30)

    asked = EDITOR | {("patch", "status"), ("update", "status"), ("update", "finalizers")}
    assert {what for what in asked if allowed(kubectl, user, space, what)} == may


def allowed(kubectl: Kubectl, user: str, namespace: str, what: tuple[str, str]) -> bool:
    """Whether a user may do `what` = (verb, subresource or "") to QwenDeployments, by the API server's own word."""
    verb, subresource = what
    target = {"group": "qwen-operator.dev", "resource": "qwendeployments", "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": {"namespace": namespace, "verb": verb, **target}},
    }
    answer = yaml.safe_load(kubectl.run("create", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump(review)))
    return bool(answer["status"]["allowed"])


def test_an_editor_can_scale(kubectl: Kubectl, release: Release, space: str) -> None:
    kubectl.run("create", "rolebinding", "edit", "--clusterrole=edit", "--user=editor", "-n", space)
    kubectl.apply(simulated(space, "s", L4))
    wait_ready(kubectl, space, "s")
    wait_for("the role is aggregated", lambda: allowed(kubectl, "editor", space, ("patch", "scale")), 30)

    kubectl.run("scale", "qd", "s", "-n", space, "--replicas=2", "--as=editor")

    kubectl.run("wait", "qd", "s", "-n", space, "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s")
