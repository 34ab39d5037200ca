"""The pods that read a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_operator.hardware.inventory import inventory
from qwen_operator.manifests import names
from tests.unit.manifests.made import POOL, RUNTIME, inspection_pod_of, only_container


def test_the_inspection_pod_reads_the_claim_once() -> None:
    pod = inspection_pod_of()
    container = only_container(pod)
    assert pod["metadata"]["name"] == "demo-0a1b2c3d-inspect"
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == "inspection"
    assert names.LABEL_ROUTABLE not in pod["metadata"]["labels"]
    assert (container["image"], container["imagePullPolicy"]) == (RUNTIME.reference, "Never")
    assert container["command"] == [
        "python3",
        "/opt/qwen-operator/qwen-runtime.pyz",
        "inspect",
        "--path",
        "/models/source/qwen/7b",
    ]
    assert container["volumeMounts"] == [{"name": "source", "mountPath": "/models/source", "readOnly": True}]
    assert (pod["spec"]["restartPolicy"], pod["spec"]["activeDeadlineSeconds"]) == ("Never", 600)
    assert "nodeSelector" not in pod["spec"]


def _terms(pod: dict[str, Any]) -> Any:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


def test_an_inspection_runs_where_engines_may_run() -> None:
    products = inventory([], [POOL, replace(POOL, product="NVIDIA-L4", node_selector={}, tolerations=())]).products
    pod = inspection_pod_of(products)
    assert _terms(pod) == [
        [{"key": "pool", "operator": "In", "values": ["h"]}],
        [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}],
    ]
    assert {"key": "dedicated", "operator": "Exists"} in pod["spec"]["tolerations"]

    mine = {"nodeAffinity": {"mine": 1}}
    chosen = inspection_pod_of(products, pod={"affinity": mine})
    assert chosen["spec"]["affinity"] == mine
    beside = inspection_pod_of(products, pod={"affinity": {"podAffinity": {}}})
    assert set(beside["spec"]["affinity"]) == {"podAffinity", "nodeAffinity"}
    assert "affinity" not in inspection_pod_of()["spec"]
