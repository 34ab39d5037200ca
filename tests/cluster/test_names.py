"""Served names on the real API server: neither an edit nor a deletion hands a live name to another namespace."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from qwen_operator.api.claims import NameRights
from qwen_operator.api.name_index import holders
from qwen_operator.kube import Manifest
from tests.qd import own_namespace, simulated, wait_condition, wait_ready
from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, condition, wait_for

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"


@pytest.fixture
def thief(kubectl: Kubectl) -> Iterator[str]:
    with own_namespace(kubectl, "thief") as name:
        yield name


def owner(kubectl: Kubectl, name: str) -> str:
    """Who gets the requests for a name: the agent's code, on the objects of the API server."""
    items: list[Manifest] = kubectl.json("get", "qd", "--all-namespaces")["items"]
    return str(holders(items, NameRights()).owners.get(name))


def joined(kubectl: Kubectl, release: Release, name: str) -> set[str]:
    """The namespaces whose workers joined under a name, by the logs of all agents."""
    selector = ("-l", "app.kubernetes.io/component=gateway", "-c", "agent", "--tail=-1")
    logs = kubectl.run("logs", "-n", release.namespace, *selector)
    return set(re.findall(rf"worker joins: '{re.escape(name)}' at [^,]+, ([^/]+)/", logs))


def degraded_message(kubectl: Kubectl, thief: str) -> str:
    """What the object that wants the name learns."""
    return str(condition(kubectl.get("qd", "older", thief), "Degraded").get("message"))


def test_a_live_name_is_not_taken_by_an_edit_or_by_re_creation(
    kubectl: Kubectl, space: str, thief: str, release: Release
) -> None:
    name = f"{space}-chat"
    kubectl.apply(simulated(thief, "older", L4))
    wait_ready(kubectl, thief, "older")
    kubectl.apply(simulated(space, "chat", L4, servedNames=[name]))
    held = wait_ready(kubectl, space, "chat")["status"]["names"]["held"]
    assert [one["name"] for one in held] == [name]

    # By an edit.
    kubectl.apply(simulated(thief, "older", L4, servedNames=[f"{thief}-older", name]))
    obj = wait_condition(kubectl, thief, "older", ("Degraded", "True", "NameConflict"))
    message = condition(obj, "Degraded")["message"]
    assert f"a QwenDeployment in namespace {space} holds since {held[0]['since']}" in message
    assert f"{space}/chat" not in message
    assert owner(kubectl, name) == f"{space}/chat"

    # By re-creation.
    kubectl.run("delete", "qd", "chat", "-n", space)
    wait_for(
        "the name is reserved",
        lambda: (
            "is reserved for that namespace until"
            in condition(kubectl.get("qd", "older", thief), "Degraded")["message"]
        ),
        30,
    )
    assert owner(kubectl, name) == "None"
    kubectl.apply(simulated(space, "chat", L4, servedNames=[name]))
    wait_ready(kubectl, space, "chat")
    assert owner(kubectl, name) == f"{space}/chat"
    assert joined(kubectl, release, name) == {space}
    wait_for("the thief is told the new holder", lambda: "holds since" in degraded_message(kubectl, thief), 30)
