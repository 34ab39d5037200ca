"""One tenant's hostile object, pod or engine on the real API server: the others go on.

A page of 4 MB from an engine is in `test_replicas.py`, which has the engines that answer. The others' requests run
meanwhile in `tests/e2e/test_hostile.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile import (
    L4,
    LARGE,
    MESSAGES,
    Neighbour,
    create,
    end_with,
    forged_pod,
    planned,
    restarts,
)
from tests.qd import own_namespace, pods, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def other(kubectl: Kubectl, release: Release) -> Iterator[Neighbour]:
    """Another tenant, who has been serving."""
    with own_namespace(kubectl, "t") as space:
        neighbour = Neighbour(kubectl, space)
        neighbour.start()
        yield neighbour


@pytest.fixture
def others_go_on(kubectl: Kubectl, release: Release, other: Neighbour) -> Iterator[Callable[[], float]]:
    """The operator acts on an edit of the other tenant's object within seconds. In the whole test nothing restarts."""
    before = restarts(kubectl, release)
    yield other.edit
    assert restarts(kubectl, release) == before


@pytest.mark.parametrize("name", LARGE)
def test_an_object_without_bounds_gets_its_status_and_the_others_are_served(
    kubectl: Kubectl, space: str, others_go_on: Callable[[], float], tmp_path: Path, name: str
) -> None:
    affinity, problem = LARGE[name]
    create(kubectl, space, name, affinity, tmp_path)
    wait_for("its status says why it is refused", lambda: "InvalidSpec" in planned(kubectl, space, name), 60)
    assert problem in planned(kubectl, space, name)
    others_go_on()
    kubectl.run("delete", "qd", name, "-n", space)


def test_a_forged_pod_ends_no_loop(
    kubectl: Kubectl, space: str, other: Neighbour, others_go_on: Callable[[], float]
) -> None:
    kubectl.apply(simulated(space, "own", L4, scaling={"maxReplicas": 2}))
    wait_ready(kubectl, space, "own")
    kubectl.apply(forged_pod(space, "forged", "own"), forged_pod(other.namespace, "forged", "other"))
    others_go_on()
    kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for(
        "only the forged pod is left",
        lambda: [pod["metadata"]["name"] for pod in pods(kubectl, space, "own")] == ["forged"],
        60,
    )
    kubectl.run("delete", "pod", "forged", "-n", other.namespace)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_hostile_termination_message_does_not_keep_its_object_from_being_changed(
    kubectl: Kubectl, space: str, others_go_on: Callable[[], float], message: str
) -> None:
    kubectl.apply(simulated(space, "own", L4))
    wait_ready(kubectl, space, "own")
    [pod] = pods(kubectl, space, "own")
    end_with(kubectl, pod, MESSAGES[message])
    wait_condition(kubectl, space, "own", ("Ready", "False", "Unknown"))
    others_go_on()
    kubectl.run("patch", "qd", "own", "-n", space, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for("the pod is removed", lambda: not pods(kubectl, space, "own"), 90)
