"""Replicas over several simulated nodes: the real API server, scheduler and eviction, and no engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qd import alive, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
A40 = "NVIDIA-A40"
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--force")
GATES = "schedulingGates"


@pytest.fixture
def nodes(bed: Cluster, release: Release) -> Iterator[OwnNodes]:
    """Three nodes of one GPU each."""
    with bed.own_nodes(Pool(A40, gpus=1, nodes=3)) as nodes:
        yield nodes


def wide(nodes: OwnNodes, space: str, name: str) -> Manifest:
    """A QwenDeployment whose replica needs two of these nodes."""
    manifest = simulated(space, name, A40, pod=nodes.pod, parallelism={"tensor": 2})
    manifest["spec"]["hardware"]["maxNodesPerReplica"] = 2
    return manifest


def hosts(kubectl: Kubectl, space: str, name: str) -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in alive(kubectl, space, name)}


def whole(kubectl: Kubectl, space: str, name: str) -> bool:
    """Whether its pods are two, on two nodes, without gates."""
    pods = alive(kubectl, space, name)
    return len(pods) == 2 and "" not in hosts(kubectl, space, name) and not any(GATES in pod["spec"] for pod in pods)


@pytest.mark.timeout(240)
def test_two_pods_on_two_nodes_are_one_replica(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    kubectl.apply(wide(nodes, space, "w"))
    obj = wait_ready(kubectl, space, "w")
    assert obj["status"]["summary"]["ready"] == "1/1"
    assert obj["status"]["plan"]["nodesPerReplica"] == 2

    pods = {pod["metadata"]["labels"]["qwen-operator.dev/rank"]: pod for pod in alive(kubectl, space, "w")}
    assert whole(kubectl, space, "w")
    assert len(hosts(kubectl, space, "w")) == 2
    told = pods["1"]["metadata"]["annotations"]["qwen-operator.dev/group-leader"]
    assert told == f"{pods['0']['status']['podIP']} {pods['0']['metadata']['uid']}"
    table = kubectl.run("get", "qd", "w", "-n", space, "-o", "wide")
    head, row = table.splitlines()[:2]
    assert row[head.index("NODES") :].split()[0] == "2"


Shape = tuple[dict[str, int], set[str], str]
LARGE = {
    "235B on 2 x 8 x 48 GB": ("Qwen/Qwen3-235B-A22B", A40),
    "72B on 2 x 8 x L4": ("Qwen/Qwen1.5-72B-Chat", "NVIDIA-L4"),
}
SHAPES: dict[str, Shape] = {
    "tensor": ({}, {"--tp-size=16"}, "With spec.parallelism.pipeline: 2 (TP 8, PP 2, 2 nodes, "),
    "stages": ({"pipeline": 2}, {"--tp-size=8", "--pp-size=2"}, "Without stages (TP 16, 2 nodes, "),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
@pytest.mark.usefixtures("release")
def test_a_large_model_on_two_nodes_of_eight(
    bed: Cluster, kubectl: Kubectl, space: str, large: tuple[str, str], shape: Shape
) -> None:
    (model, product), (parallelism, options, reason) = large, shape
    with bed.own_nodes(Pool(product, gpus=8, nodes=2)) as nodes:
        kubectl.apply(simulated(space, "w", product, model=model, pod=nodes.pod, parallelism=parallelism))
        refused = wait_condition(kubectl, space, "w", ("Planned", "False", "DoesNotFit"), 60)
        assert "set it to 2 to run each replica over 2 nodes" in condition(refused, "Planned")["message"]
        [change] = refused["status"]["noFit"]["alternatives"]
        kubectl.run("patch", "qd", "w", "-n", space, "--type=merge", "-p", change["patch"])

        plan = wait_ready(kubectl, space, "w")["status"]["plan"]
        assert (plan["gpusPerReplica"], plan["nodesPerReplica"]) == (16, 2)
        assert options <= set(plan["args"])
        assert any(step.startswith("over 2 nodes: ") and reason in step for step in plan["steps"])
        assert whole(kubectl, space, "w")
        for pod in alive(kubectl, space, "w"):
            [engine] = [one for one in pod["spec"]["containers"] if one["name"] == "engine"]
            assert options <= set(engine["command"])
            assert engine["resources"]["limits"]["nvidia.com/gpu"] == "8"
        kubectl.run("delete", "qd", "w", "-n", space)


@pytest.mark.timeout(240)
def test_pods_wait_without_a_gpu_until_all_nodes_are_there(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    for node in nodes.names[1:]:
        kubectl.run("cordon", node)
    kubectl.apply(wide(nodes, space, "w"))
    obj = wait_condition(kubectl, space, "w", ("Ready", "False", "WaitingForGpus"), 60)
    assert "take no GPU before all of them fit" in condition(obj, "Ready")["message"]
    assert hosts(kubectl, space, "w") == {""}

    kubectl.run("uncordon", nodes.names[1])
    wait_ready(kubectl, space, "w")


@pytest.mark.timeout(240)
def test_two_replicas_and_three_nodes(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    kubectl.apply(wide(nodes, space, "one"))
    kubectl.apply(wide(nodes, space, "two"))
    wait_for("one of them is whole", lambda: _whole(kubectl, space), 60)
    [winner] = _whole(kubectl, space)
    [loser] = {"one", "two"} - {winner}
    wait_condition(kubectl, space, loser, ("Ready", "False", "WaitingForGpus"), 60)
    assert hosts(kubectl, space, loser) == {""}

    kubectl.run("delete", "qd", winner, "-n", space)
    wait_ready(kubectl, space, loser)


def _whole(kubectl: Kubectl, space: str) -> list[str]:
    return [name for name in ("one", "two") if whole(kubectl, space, name)]


@pytest.mark.timeout(240)
def test_a_quota_for_one_and_a_half_replicas_gives_one(kubectl: Kubectl, nodes: OwnNodes, space: str) -> None:
    hard = {"requests.nvidia.com/gpu": "3"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus", "namespace": space}}
    kubectl.apply({**quota, "spec": {"hard": hard}})
    kubectl.run("wait", "quota/gpus", "-n", space, "--for=jsonpath={.status.hard}", "--timeout=30s")
    manifest = wide(nodes, space, "w")
    manifest["spec"]["replicas"] = 2
    kubectl.apply(manifest)
    wait_for("one of them is whole", lambda: whole(kubectl, space, "w"), 60)
    said = 'the ResourceQuota "gpus" allows 3 requests.nvidia.com/gpu, 2 are used, and '

    def told() -> bool:
        obj = kubectl.get("qd", "w", space) or {}
        conditions = obj.get("status", {}).get("conditions", [])
        return any(one["type"] == "ScalingLimited" and one["message"].startswith(said) for one in conditions)

    wait_for("the quota is named", told, 60)
    assert len(alive(kubectl, space, "w")) == 2, "no part of the second replica holds a place in the quota"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_deleted_pod_takes_its_replica_with_it(kubectl: Kubectl, nodes: OwnNodes, space: str, rank: str) -> None:
    kubectl.apply(wide(nodes, space, "w"))
    wait_ready(kubectl, space, "w")
    before = {pod["metadata"]["uid"] for pod in alive(kubectl, space, "w")}
    [victim] = [
        pod["metadata"]["name"]
        for pod in alive(kubectl, space, "w")
        if pod["metadata"]["labels"]["qwen-operator.dev/rank"] == rank
    ]
    kubectl.run("delete", "pod", victim, "-n", space, "--wait=false")

    def came_back() -> bool:
        uids = {pod["metadata"]["uid"] for pod in alive(kubectl, space, "w")}
        return whole(kubectl, space, "w") and not uids & before

    wait_for("a new replica", came_back, 120)
    wait_ready(kubectl, space, "w")


@pytest.mark.timeout(300)
def test_each_pod_has_one_budget_and_a_drain_of_a_workers_node_ends(
    kubectl: Kubectl, nodes: OwnNodes, space: str
) -> None:
    kubectl.apply(wide(nodes, space, "w"))
    wait_ready(kubectl, space, "w")
    budgets = kubectl.run("get", "pdb", "-n", space, "-o", "name").split()
    assert sorted(budgets) == [f"poddisruptionbudget.policy/w-{end}" for end in ("engine", "engine-worker")]
    [node] = [
        pod["spec"]["nodeName"]
        for pod in alive(kubectl, space, "w")
        if pod["metadata"]["labels"]["qwen-operator.dev/role"] == "engine-worker"
    ]

    # A successor would need four nodes. So the drain ends after the replica's drain time, with an eviction.
    kubectl.run("drain", node, *DRAIN, "--timeout=100s")

    wait_for(
        "it is on the other nodes", lambda: whole(kubectl, space, "w") and node not in hosts(kubectl, space, "w"), 90
    )
    wait_ready(kubectl, space, "w")


BLOCK = "test.qwen-operator.dev/block"


@pytest.fixture
def in_blocks(bed: Cluster, kubectl: Kubectl, nodes: OwnNodes) -> Iterator[OwnNodes]:
    """The first node is alone in its block, and the chart wants the nodes of a replica in one."""
    for name, block in zip(nodes.names, ("a", "b", "b"), strict=True):
        kubectl.run("label", "node", name, f"{BLOCK}={block}")
    settings = (f"topologyKey={BLOCK}", "topologyPolicy=Required", "interface=net1")
    install(bed, *(word for one in settings for word in ("--set", f"engine.multiNode.{one}")))
    try:
        yield nodes
    finally:
        install(bed)


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_nodes_of_a_replica_share_a_block(kubectl: Kubectl, in_blocks: OwnNodes, space: str) -> None:
    first, *others = in_blocks.names
    kubectl.run("cordon", others[0])
    kubectl.apply(wide(in_blocks, space, "w"))
    obj = wait_condition(kubectl, space, "w", ("Ready", "False", "WaitingForGpus"))
    assert f"must share the label {BLOCK}" in condition(obj, "Ready")["message"]
    kubectl.run("uncordon", others[0])
    wait_ready(kubectl, space, "w")
    assert hosts(kubectl, space, "w") == set(others), f"and not {first}"
    for pod in alive(kubectl, space, "w"):
        assert pod["spec"]["nodeSelector"][BLOCK] == "b"
        variables = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert (variables["NCCL_SOCKET_IFNAME"], variables["GLOO_SOCKET_IFNAME"]) == ("=net1", "net1")
