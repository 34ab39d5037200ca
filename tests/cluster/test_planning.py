"""Planning on the real API server and scheduler, with simulated GPU nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qd import events, pods, qd, simulated, wait_condition, wait_ready
from tests.testbed.cluster import Cluster, OwnNodes
from tests.testbed.kubectl import Kubectl, condition, wait_for
from tests.testbed.simulated import Pool

pytestmark = pytest.mark.cluster
A100, L4 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-L4"


def test_72b_takes_four_gpus_of_80_gb(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(simulated(space, "big", A100, model="Qwen/Qwen1.5-72B-Chat"))

    obj = wait_ready(kubectl, space, "big")

    plan = obj["status"]["plan"]
    assert (plan["gpuProduct"], plan["gpusPerReplica"], plan["parallelism"]) == (A100, 4, {"tensor": 4})
    [pod] = pods(kubectl, space, "big")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "--tp-size=4" in pod["spec"]["containers"][0]["command"] + pod["spec"]["containers"][0].get("args", [])
    row = kubectl.run("get", "qd", "big", "-n", space).splitlines()[1].split()
    assert row[:5] == ["big", "Qwen/Qwen1.5-72B-Chat", "4xA100-80GB", "1/1", "Serving"]


def test_what_does_not_fit_makes_no_pod(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(simulated(space, "big", L4, model="Qwen/Qwen1.5-72B-Chat"))

    obj = wait_condition(kubectl, space, "big", ("Planned", "False", "DoesNotFit"))

    assert condition(obj, "Ready")["status"] == "False"
    assert "GiB" in condition(obj, "Planned")["message"]
    assert pods(kubectl, space, "big") == []
    assert ("Warning", "DoesNotFit") in events(kubectl, space, "big")


def test_unknown_model_names_what_is_known(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(qd(space, "odd", model="Qwen/Qwen9-1000B"))

    obj = wait_condition(kubectl, space, "odd", ("Ready", "False", "UnknownModel"))

    message = condition(obj, "Planned")["message"]
    assert "Qwen/Qwen9-1000B" in message
    assert "Qwen/Qwen1.5-72B" in message
    assert "source" in message
    # A corrected object goes on by itself.
    kubectl.apply(simulated(space, "odd", L4))
    wait_ready(kubectl, space, "odd")


@pytest.fixture
def eight(bed: Cluster) -> Iterator[OwnNodes]:
    """A node of 8 GPUs that no other test uses."""
    with bed.own_nodes(Pool(L4, gpus=8, nodes=1)) as nodes:
        yield nodes


def test_no_room_waits_and_goes_on_by_itself(kubectl: Kubectl, eight: OwnNodes, space: str) -> None:
    kubectl.apply(simulated(space, "wide", L4, replicas=9, pod=eight.pod))

    ready = "--for=jsonpath={.status.readyReplicas}=8"
    kubectl.run("wait", "qd", "wide", "-n", space, ready, "--timeout=60s")
    kubectl.apply(simulated(space, "late", L4, pod=eight.pod))
    obj = wait_condition(kubectl, space, "late", ("Ready", "False", "WaitingForGpus"))
    assert "nvidia.com/gpu" in condition(obj, "Ready")["message"]
    assert ("Warning", "WaitingForGpus") in events(kubectl, space, "late")

    kubectl.apply(simulated(space, "wide", L4, replicas=2, pod=eight.pod))

    wait_ready(kubectl, space, "late")
    wait_for("two are left", lambda: len(pods(kubectl, space, "wide")) == 2, 30)


def test_a_served_name_belongs_to_the_first_one_that_asks_for_it(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(simulated(space, "first", L4, servedNames=[f"{space}-chat"]))
    wait_ready(kubectl, space, "first")

    kubectl.apply(simulated(space, "second", L4, servedNames=[f"{space}-chat"]))

    obj = wait_condition(kubectl, space, "second", ("Ready", "False", "NameConflict"))
    assert "which QwenDeployment first of this namespace holds since" in condition(obj, "Ready")["message"]
    kubectl.run("delete", "qd", "first", "-n", space)
    wait_ready(kubectl, space, "second")


def test_kubectl_scale_works_through_the_subresource(kubectl: Kubectl, space: str) -> None:
    kubectl.apply(simulated(space, "s", L4, replicas=1))
    wait_ready(kubectl, space, "s")

    kubectl.run("scale", "qd", "s", "-n", space, "--replicas=2")

    kubectl.run("wait", "qd", "s", "-n", space, "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s")
    scale = kubectl.run("get", "--raw", f"/apis/qwen-operator.dev/v1alpha1/namespaces/{space}/qwendeployments/s/scale")
    assert '"selector":"qwen-operator.dev/deployment=s,qwen-operator.dev/role=engine,' in scale
