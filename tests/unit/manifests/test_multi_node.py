"""What the chart gives to the pods of replicas over several nodes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.actions.refusals import explain
from qwen_operator.actions.types import Kind, Refusal
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import parse
from qwen_operator.checkpoints import catalog
from qwen_operator.hardware.inventory import GpuPool, inventory
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods, engine_template
from qwen_operator.manifests.multi_node import HOST_PORTS, MultiNode, MultiNodes, TopologyPolicy, connected
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, Plan
from qwen_operator.sources import registry
from qwen_runtime.group import DIST_PORT, GROUP_PORT
from qwen_runtime.progress import PORT

H100 = "NVIDIA-H100-80GB-HBM3"
POOL = GpuPool("p", H100, 81559, 8, {"pool": "h"}, max_nodes=4)
IDENTITY = PodIdentity(Owner("demo", "team-a", "uid-1"), "0a1b2c3d")
DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
BLOCK = "topology.example.com/block"


def planned(nodes: int = 2, env: tuple[EnvVar, ...] = (), **spec: Any) -> tuple[Plan, dict[str, Any]]:
    """A plan over so many nodes of two GPUs each, and its template."""
    facts = catalog.lookup("Qwen/Qwen1.5-7B-Chat")
    assert facts is not None
    parsed = parse({"metadata": {"name": "demo"}, "spec": {"model": "Qwen/Qwen1.5-7B-Chat", **spec}})
    source = registry.engine_source(parsed, facts, DEFAULTS)
    made = plan(parsed, facts, inventory([], [POOL]), DEFAULTS, source)
    assert isinstance(made, Plan)
    made = replace(made, nodes_per_replica=nodes, gpus_per_replica=2 * nodes, shm_bytes=2 << 30, env=(*made.env, *env))
    return made, engine_template(IDENTITY, parsed, made, source, RuntimeImage("own:1"))


def pods(given: MultiNode, *, nodes: int = 2, **more: Any) -> list[dict[str, Any]]:
    made, template = planned(nodes, **more)
    settings = MultiNodes(given)
    return list(engine_pods(ReplicaPods(IDENTITY, 0, nodes), connected(template, made, settings), 600))


def engine(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return dict(container)


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in engine(pod)["env"]}


EVERYTHING = MultiNode("net1", {"rdma/hca": 1}, True, True, 4, BLOCK, TopologyPolicy.REQUIRED)


def test_nothing_changes_without_a_setting_and_for_a_replica_on_one_node() -> None:
    made, template = planned()
    assert connected(template, made, MultiNodes()) == template
    made, template = planned(nodes=1)
    before = deepcopy(template)
    assert connected(template, made, MultiNodes(EVERYTHING)) == before


def test_nccl_gets_the_whole_name_and_the_spec_wins() -> None:
    seen = environment(pods(MultiNode("net1"))[1])
    assert (seen["NCCL_SOCKET_IFNAME"], seen["GLOO_SOCKET_IFNAME"]) == ("=net1", "net1")
    seen = environment(pods(MultiNode("net1"), env=(EnvVar("NCCL_SOCKET_IFNAME", "ib"),))[0])
    assert (seen["NCCL_SOCKET_IFNAME"], seen["GLOO_SOCKET_IFNAME"]) == ("ib", "net1")


def test_each_pod_gets_the_resources_and_checks_that_it_may_lock_memory() -> None:
    for pod in pods(MultiNode(resources={"rdma/hca": 2})):
        resources = engine(pod)["resources"]
        assert resources["limits"] == {"rdma/hca": "2", "nvidia.com/gpu": "2"}
        assert resources["requests"]["rdma/hca"] == "2"
        command = engine(pod)["command"]
        assert command.index("--group-locks-memory") < command.index("--")
    own: dict[str, Any] = {"pod": {"resources": {"limits": {"rdma/hca": 4}}}}
    assert engine(pods(MultiNode(resources={"rdma/hca": 2}), **own)[0])["resources"]["limits"]["rdma/hca"] == "4"


@pytest.mark.parametrize(
    ("given", "checks"),
    [
        (MultiNode(resources={"nvidia.com/cx7_rdma": 1}), True),
        (MultiNode(resources={"vpc.amazonaws.com/efa": 1}), True),
        (MultiNode(resources={"openshift.io/mlnxnics": 1}), True),
        (MultiNode(resources={"example.com/HCA": 1}), True),
        (MultiNode(resources={"example.com/mlnx_ib0": 1}), True),
        (MultiNode(resources={"example.com/infiniband": 1}), True),
        (MultiNode(resources={"example.com/sriov_net": 1}), False),
        (MultiNode(resources={"example.com/fibre": 1}), False),
        (MultiNode(ipc_lock=True, resources={"example.com/sriov_net": 1}), True),
        (MultiNode("net1"), False),
    ],
)
def test_only_pods_that_lock_memory_check_that_they_may(given: MultiNode, checks: bool) -> None:
    assert ["--group-locks-memory" in engine(pod)["command"] for pod in pods(given)] == [checks] * 2


def test_the_lock_of_memory_is_the_only_capability_and_only_the_engine_is_root() -> None:
    for pod in pods(MultiNode(ipc_lock=True)):
        assert engine(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsNonRoot": False,
        }
        assert pod["spec"]["securityContext"]["runAsUser"] == 65532
        assert "add" not in pod["spec"]["initContainers"][0]["securityContext"]["capabilities"]
        assert "hostNetwork" not in pod["spec"]


def test_on_the_network_of_the_node_the_scheduler_knows_the_ports() -> None:
    for pod in pods(MultiNode(host_network=True)):
        assert (pod["spec"]["hostNetwork"], pod["spec"]["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
        ports = {one["name"]: (one["containerPort"], one["hostPort"]) for one in engine(pod)["ports"]}
        assert ports == {
            "http": (8000, 8000),
            "progress": (8001, 8001),
            "dist": (20000, 20000),
            "group": (20001, 20001),
        }


def test_the_ports_are_those_of_the_runtime() -> None:
    assert HOST_PORTS == {"http": 8000, "progress": PORT, "dist": DIST_PORT, "group": GROUP_PORT}


@pytest.mark.parametrize(
    ("spec", "memory"), [({}, "8Gi"), ({"pod": {"resources": {"requests": {"memory": "64Gi"}}}}, "64Gi")]
)
def test_a_larger_shared_memory_is_requested(spec: dict[str, Any], memory: str) -> None:
    (pod, _) = pods(MultiNode(shared_memory_gib_per_gpu=4), **spec)
    (shm,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    (usual, _) = pods(MultiNode("net1"), **spec)
    more = int(memory.removesuffix("Gi")) - int(engine(usual)["resources"]["requests"]["memory"].removesuffix("Gi"))
    assert engine(pod)["resources"]["requests"]["memory"] == memory
    assert more == (0 if spec else 6)


def test_the_pods_of_a_replica_like_or_must_share_a_block() -> None:
    term = {"labelSelector": {"matchLabels": {"qwen-operator.dev/replica": "demo-0a1b2c3d-0"}}, "topologyKey": BLOCK}
    (first, second) = pods(MultiNode(topology_key=BLOCK))
    assert first["spec"]["affinity"]["podAffinity"] == {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
    }
    assert "podAntiAffinity" in first["spec"]["affinity"], "and still no node twice"
    (first, second) = pods(MultiNode(topology_key=BLOCK, topology_policy=TopologyPolicy.REQUIRED))
    for pod in (first, second):
        assert pod["spec"]["affinity"]["podAffinity"] == {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def test_a_pool_may_have_settings_of_its_own() -> None:
    made, _ = planned()
    fast, other = MultiNode("net1"), MultiNode("net2")
    settings = MultiNodes(
        MultiNode("eth0"),
        (
            (replace(POOL, product="NVIDIA-L4"), other),
            (replace(POOL, node_selector={}), other),
            (POOL, fast),
            (replace(POOL, node_selector={"pool": "elsewhere"}), other),
        ),
    )
    assert settings.of(made) == fast
    assert settings.of(replace(made, gpu_product="NVIDIA-L40S")).interface == "eth0"


@pytest.mark.parametrize(
    "words",
    [
        'pods "a" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)',
        'violates PodSecurity "baseline:latest": capabilities (container "engine" must not include "IPC_LOCK")',
    ],
)
def test_what_pod_security_refuses_says_whose_decision_it_is(words: str) -> None:
    _, message = explain(Refusal(Kind.POD, "a", words))
    assert message.startswith("the chart gives the pods of replicas over several nodes the network of the host")
    assert "turn hostNetwork and ipcLock of multiNode off, or label the namespace" in message
