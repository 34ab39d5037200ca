"""What is the operator's own is repaired; what is not is left alone."""

from __future__ import annotations

import pytest

from tests.qd import pods, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"


@pytest.fixture
def settled(kubectl: Kubectl, space: str) -> Manifest:
    """The pod of a Ready deployment `own` of one replica."""
    kubectl.apply(simulated(space, "own", L4))
    wait_ready(kubectl, space, "own")
    [pod] = pods(kubectl, space, "own")
    return pod


def patch(kubectl: Kubectl, kind: str, obj: Manifest, operations: str) -> None:
    meta = obj["metadata"]
    kubectl.run("patch", kind, meta["name"], "-n", meta["namespace"], "--type=json", "-p", operations)


def test_edited_fields_are_put_back_and_foreign_ones_stay(kubectl: Kubectl, space: str, settled: Manifest) -> None:
    name = settled["metadata"]["name"]
    kubectl.run("annotate", "pod", name, "-n", space, "example.com/note=mine")
    kubectl.run("label", "pod", name, "-n", space, "--overwrite", "app.kubernetes.io/instance=stolen")
    patch(kubectl, "pod", settled, '[{"op": "remove", "path": "/metadata/ownerReferences"}]')
    budget = kubectl.get("poddisruptionbudget", "own-engine", space)
    assert budget
    patch(kubectl, "poddisruptionbudget", budget, '[{"op": "replace", "path": "/spec/minAvailable", "value": 0}]')

    def repaired() -> bool:
        meta = (kubectl.get("pod", name, space) or {}).get("metadata", {})
        spec = (kubectl.get("poddisruptionbudget", "own-engine", space) or {}).get("spec")
        owned = meta.get("ownerReferences") == settled["metadata"]["ownerReferences"]
        labelled = meta.get("labels") == settled["metadata"]["labels"]
        return bool(owned and labelled and spec == budget["spec"])

    wait_for("edits repaired", repaired, 30)
    [pod] = pods(kubectl, space, "own")
    assert pod["metadata"]["uid"] == settled["metadata"]["uid"]
    assert pod["metadata"]["annotations"]["example.com/note"] == "mine"


def test_a_pinned_revision_is_repaired_and_goes_when_nothing_runs_it(
    kubectl: Kubectl, space: str, settled: Manifest
) -> None:
    [old] = kubectl.list("controllerrevisions", space)
    name = old["metadata"]["name"]
    kubectl.run("label", "controllerrevision", name, "-n", space, "--overwrite", "app.kubernetes.io/instance=other")

    def labels() -> bool:
        revision = kubectl.get("controllerrevision", name, space) or {"metadata": {}}
        return bool(revision["metadata"].get("labels") == old["metadata"]["labels"])

    wait_for("the label is put back", labels, 30)
    # The newest two that nothing runs are kept for a way back.
    for number, tokens in enumerate((4096, 4352, 4608), start=2):
        kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", f'{{"spec":{{"contextTokens":{tokens}}}}}')
        wait_pinned(kubectl, space, number)
    wait_for("the first revision is gone", lambda: kubectl.get("controllerrevision", name, space) is None, 90)
    wait_ready(kubectl, space, "own")


def wait_pinned(kubectl: Kubectl, space: str, number: int) -> None:
    def pinned() -> bool:
        return any(item["revision"] == number for item in kubectl.list("controllerrevisions", space))

    wait_for(f"revision {number} is pinned", pinned, 30)


def test_a_deleted_pod_is_replaced(kubectl: Kubectl, space: str, settled: Manifest) -> None:
    kubectl.run("delete", "pod", settled["metadata"]["name"], "-n", space, "--wait=false")

    def replaced() -> bool:
        present = pods(kubectl, space, "own")
        return len(present) == 1 and present[0]["metadata"]["uid"] != settled["metadata"]["uid"]

    wait_for("another pod is there, and only that", replaced, 60)
    wait_ready(kubectl, space, "own")


def test_foreign_objects_are_never_taken_over(kubectl: Kubectl, space: str) -> None:
    foreign = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "mine-engine", "namespace": space},
        "spec": {"minAvailable": 7, "selector": {"matchLabels": {"app": "other"}}},
    }
    kubectl.apply(foreign)

    kubectl.apply(simulated(space, "mine", L4))

    obj = wait_condition(kubectl, space, "mine", ("Ready", "False", "ForeignObject"))
    assert "mine-engine" in condition(obj, "Ready")["message"]
    budget = kubectl.get("poddisruptionbudget", "mine-engine", space)
    assert budget
    assert budget["spec"] == foreign["spec"]
    kubectl.run("delete", "poddisruptionbudget", "mine-engine", "-n", space)
    wait_ready(kubectl, space, "mine")


@pytest.mark.alone
def test_other_defaults_and_other_nodes_replace_nothing(
    kubectl: Kubectl, bed: Cluster, release: Release, space: str, settled: Manifest
) -> None:
    revision = wait_ready(kubectl, space, "own")["status"]["plan"]["hash"]
    try:
        install(bed, "--set", "engine.args[6]=--schedule-policy=lpm")
        with bed.own_nodes(Pool(L4, gpus=8, nodes=1), exclusive=False):
            obj = wait_for("the newer plan is announced", lambda: _announced(kubectl, space), 60)
    finally:
        install(bed)

    [pod] = pods(kubectl, space, "own")
    assert pod["metadata"]["uid"] == settled["metadata"]["uid"]
    assert obj["status"]["plan"]["hash"] == revision
    assert len(kubectl.list("controllerrevisions", space)) == 1


def _announced(kubectl: Kubectl, space: str) -> Manifest | None:
    obj = kubectl.get("qd", "own", space)
    return obj if "qwen-operator.dev/replan" in condition(obj, "Planned").get("message", "") else None


def test_deleting_leaves_nothing(kubectl: Kubectl, space: str, settled: Manifest) -> None:
    kubectl.run("delete", "qd", "own", "-n", space)

    def gone() -> bool:
        kinds = ("pods", "controllerrevisions", "poddisruptionbudgets")
        return all(not kubectl.list(kind, space, "app.kubernetes.io/managed-by=qwen-operator") for kind in kinds)

    wait_for("nothing is left", gone, 60)
