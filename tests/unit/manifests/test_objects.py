"""The other children, drift and stored forms."""

from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from qwen_operator.manifests import names
from qwen_operator.manifests.drift import pod_repair, subset
from qwen_operator.manifests.names import Owner
from qwen_operator.manifests.objects import controller_revision, disruption_budget
from qwen_operator.manifests.quantities import amount, canonical, canonical_quantities

OWNER = Owner("demo", "team-a", "uid-1")


def test_a_budget_protects_what_the_status_counts_and_never_what_is_broken() -> None:
    budget = disruption_budget(OWNER, 2)
    labels = budget["spec"]["selector"]["matchLabels"]
    assert ",".join(f"{key}={value}" for key, value in labels.items()) == names.engine_selector("demo")
    assert labels[names.LABEL_ROUTABLE] == "true", "what drains may be evicted"
    assert budget["spec"]["minAvailable"] == 2
    assert "maxUnavailable" not in budget["spec"]
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_revision_keeps_its_data() -> None:
    record = controller_revision(OWNER, "0a1b2c3d", 4, {"plan": {"a": 1}})
    assert (record["metadata"]["name"], record["revision"], record["data"]) == ("demo-0a1b2c3d", 4, {"plan": {"a": 1}})
    assert record["metadata"]["labels"][names.LABEL_REVISION] == "0a1b2c3d"
    assert record["metadata"]["annotations"] == {names.ANNOTATION_OWNER_UID: "uid-1"}


SUBSETS: dict[str, tuple[Any, Any, bool]] = {
    "more members": ({"a": 1}, {"a": 1, "b": 2}, True),
    "missing member": ({"a": 1}, {"b": 2}, False),
    "another value": ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
    "no object": ({"a": {"b": 1}}, {"a": 1}, False),
    "more elements, other order": ([{"n": 1}, {"n": 2}], [{"n": 3}, {"n": 2, "x": 0}, {"n": 1}], True),
    "missing element": ([{"n": 1}], [{"n": 2}], False),
    "same values": (["a", "b"], ["a", "b"], True),
    "values in another order": (["a", "b"], ["b", "a"], False),
    "no list": ([1], 1, False),
    "empty lists": ([], [], True),
}


@pytest.mark.parametrize(("desired", "observed", "holds"), SUBSETS.values(), ids=SUBSETS.keys())
def test_subset(desired: Any, observed: Any, holds: bool) -> None:
    assert subset(desired, observed) is holds


def _pod() -> dict[str, Any]:
    return {
        "metadata": names.metadata(OWNER, "demo-r-0", {"ours": "1"}),
        "spec": {
            "containers": [{"name": "engine", "image": "a"}],
            "initContainers": [{"name": "runtime", "image": "b"}],
        },
    }


def test_a_pod_as_it_should_be_needs_no_repair() -> None:
    observed = _pod()
    observed["metadata"]["labels"]["foreign"] = "x"
    observed["metadata"]["annotations"]["foreign"] = "x"
    observed["metadata"]["ownerReferences"].append({"uid": "uid-2", "name": "other"})
    observed["spec"]["containers"].append({"name": "mesh", "image": "proxy"})
    assert pod_repair(_pod(), observed) is None


REFERENCE = names.owner_reference(OWNER)


def edited(containers: str, name: str, manager: str = "kubectl-set") -> dict[str, Any]:
    """The record of an edit of the image of one container."""
    fields: dict[str, Any] = {f"f:{containers}": {f'k:{{"name":"{name}"}}': {"f:image": {}}}}
    return {"managedFields": [{"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": fields}}]}


REPAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "label changed": ({"metadata": {"labels": {"ours": "2"}}}, {"metadata": {"labels": {"ours": "1"}}}),
    "labels gone": ({"metadata": {"labels": None}}, {"metadata": {"labels": {"ours": "1"}}}),
    "annotation gone": (
        {"metadata": {"annotations": {}}},
        {"metadata": {"annotations": {"qwen-operator.dev/owner-uid": "uid-1"}}},
    ),
    "owner gone": ({"metadata": {"ownerReferences": []}}, {"metadata": {"ownerReferences": [REFERENCE]}}),
    "owner no controller": (
        {"metadata": {"ownerReferences": [REFERENCE | {"controller": False}]}},
        {"metadata": {"ownerReferences": [REFERENCE]}},
    ),
    "image": (
        {"spec": {"containers": [{"name": "engine", "image": "z"}]}, "metadata": edited("containers", "engine")},
        {"spec": {"containers": [{"name": "engine", "image": "a"}]}},
    ),
    "init image": (
        {
            "spec": {"initContainers": [{"name": "runtime", "image": "z"}]},
            "metadata": edited("initContainers", "runtime"),
        },
        {"spec": {"initContainers": [{"name": "runtime", "image": "b"}]}},
    ),
}


@pytest.mark.parametrize(("damage", "patch"), REPAIRS.values(), ids=REPAIRS.keys())
def test_a_repair_says_only_what_differs(damage: dict[str, Any], patch: dict[str, Any]) -> None:
    observed = deepcopy(_pod())
    for part, members in damage.items():
        observed[part] |= members
    assert pod_repair(_pod(), observed) == patch


REWRITTEN = {
    "by nobody else": {},
    "by the operator's own request": edited("containers", "engine", manager="qwen-operator"),
    "another field": {
        "managedFields": [
            {"manager": "kubelet", "fieldsV1": {"f:spec": {"f:containers": {'k:{"name":"engine"}': {"f:env": {}}}}}}
        ]
    },
    "another container": edited("containers", "mesh"),
    "nonsense": {"managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {"f:containers": ["f:image"]}}}, 3]},
}


@pytest.mark.parametrize("metadata", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_an_image_that_admission_rewrote_stays(metadata: dict[str, Any]) -> None:
    """Its field belongs to the request that created the pod. Only an edit by somebody else is undone."""
    observed = deepcopy(_pod())
    observed["spec"]["containers"][0]["image"] = "mirror.example.com/a@sha256:0"
    observed["metadata"] |= metadata
    assert pod_repair(_pod(), observed) is None


def test_a_container_that_is_gone_is_not_patched_back() -> None:
    observed = _pod()
    observed["spec"]["containers"] = [{"name": "mesh", "image": "proxy"}]
    assert pod_repair(_pod(), observed) is None


# Right sides as kube-apiserver 1.36 stores them in `resources`.
QUANTITIES: dict[int | str, str] = {
    2: "2",
    "0": "0",
    "0Gi": "0",
    "0.5": "500m",
    ".5": "500m",
    "1000m": "1",
    "1024Mi": "1Gi",
    "1536Mi": "1536Mi",
    "0.5Gi": "512Mi",
    "1.5Gi": "1536Mi",
    "1000Mi": "1000Mi",
    "128974848": "128974848",
    "1024": "1024",
    "5000k": "5M",
    "1000000000": "1G",
    "16e9": "16e9",
    "12e6": "12e6",
    "1E3": "1E3",
    "1e0": "1",
    "0.1Ki": "102400m",
    "2048Ki": "2Mi",
    "0.5Ki": "512",
    "2Ei": "2Ei",
    "1e30": "1e30",
    "1.2345": "1235m",
    "1n": "1m",
    "5.": "5.",
    "much": "much",
    "": "",
}


@pytest.mark.parametrize(("written", "stored"), QUANTITIES.items())
def test_quantities_as_the_server_stores_them(written: int | str, stored: str) -> None:
    assert canonical(written) == stored
    assert canonical(stored) == stored


def test_quantities_are_found_where_they_stand() -> None:
    written = {
        "a": [{"resources": {"limits": {"cpu": 0}, "requests": None}, "sizeLimit": "1024Mi", "limits": "1024Mi"}]
    }
    stored = {"a": [{"resources": {"limits": {"cpu": "0"}, "requests": None}, "sizeLimit": "1Gi", "limits": "1024Mi"}]}
    assert canonical_quantities(written) == stored


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", "0.5"),
        ("1Gi", "1073741824"),
        ("1.5Ki", "1536"),
        ("2k", "2000"),
        ("1e3", "1000"),
        ("2E", "2e18"),
        (3, "3"),
    ],
)
def test_a_quantity_as_a_number(text: int | str, number: str) -> None:
    assert amount(text) == Decimal(number)


def test_what_is_no_quantity_is_no_number() -> None:
    assert amount("many") is None
