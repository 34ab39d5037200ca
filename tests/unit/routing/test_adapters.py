"""Which adapters of a name the proxy may pass on, while replicas come and go."""

from typing import Any

import pytest

from qwen_operator.api.adapters import adapter_names
from qwen_operator.manifests.names import ANNOTATION_ADAPTERS
from qwen_operator.routing.adapters import Adapters, loaded_adapters, restore_adapters
from qwen_operator.routing.membership import GatewayView, Membership, advance
from qwen_operator.routing.waiting import waiting_file
from tests.unit.gateway.objects import Manifest, deleting, deployment, pod, worker
from tests.unit.routing.test_membership import NAMING


def wanting(*names: str, **spec: Any) -> Manifest:
    return deployment("d", adapters=[{"name": name, "source": {"uri": "pvc://c/a"}} for name in names], **spec)


def having(manifest: Manifest, names: str) -> Manifest:
    meta = manifest["metadata"]
    return {**manifest, "metadata": {**meta, "annotations": {**meta["annotations"], ANNOTATION_ADAPTERS: names}}}


OLD = having(pod("d-0", "d"), "a")
NEW = having(pod("d-1", "d", "10.0.0.6"), "a,b")


class World:
    """The steps of an agent beside a router that takes over every file at once, unless it `lags`."""

    def __init__(self) -> None:
        self.membership, self.adapters = Membership(), dict[str, Any]()
        self.workers: Any = []

    def step(self, deployments: list[Manifest], pods: list[Manifest], *, lags: bool = False, **more: Any) -> Adapters:
        observed = GatewayView(deployments, pods, self.workers, **more)
        self.membership = advance(observed, self.membership, NAMING)
        if not lags:
            self.workers = [worker(entry.id, entry.url) for entry in self.membership.entries]
            observed = GatewayView(deployments, pods, self.workers, **more)
        self.adapters = dict(loaded_adapters(observed, self.membership, self.adapters))
        return self.adapters


def test_an_added_adapter_is_loaded_when_no_replica_without_it_is_left() -> None:
    world = World()
    assert world.step([wanting("a")], [OLD]) == {"m": {"a": True}}
    assert world.step([wanting("a", "b")], [OLD]) == {"m": {"a": True, "b": False}}
    assert world.step([wanting("a", "b")], [OLD, NEW]) == {"m": {"a": True, "b": False}}
    # The router may still choose a worker that has left the file.
    assert world.step([wanting("a", "b")], [deleting(OLD), NEW], lags=True) == {"m": {"a": True, "b": False}}
    assert world.step([wanting("a", "b")], [deleting(OLD), NEW]) == {"m": {"a": True, "b": True}}


def test_a_removed_adapter_is_unknown_at_once() -> None:
    world = World()
    world.step([wanting("a", "b")], [NEW])
    assert world.step([wanting("a")], [NEW]) == {"m": {"a": True}}
    # As long as a replica has one, nobody may choose it by SGLang's own field either.
    assert world.step([wanting()], [NEW]) == {"m": {}}
    later = pod("d-2", "d", "10.0.0.7")
    assert world.step([wanting()], [deleting(NEW), later], lags=True) == {"m": {}}
    world.step([wanting()], [deleting(NEW), later])
    assert world.step([wanting()], [later]) == {}


def test_every_name_has_them_also_while_the_model_sleeps() -> None:
    world = World()
    names = wanting("a", servedNames=["x", "y"])
    assert world.step([names], []) == {"x": {"a": True}, "y": {"a": True}}
    assert world.step([names], [pod("d-0", "d")]) == {"x": {"a": False}, "y": {"a": False}}


def test_a_namespace_that_is_unread_keeps_what_was_known() -> None:
    world = World()
    world.step([wanting("a")], [OLD])
    assert world.step([], [], unread=frozenset({"demo"})) == {"m": {"a": True}}
    assert world.step([], []) == {}


def test_a_new_agent_knows_what_the_one_before_it_knew() -> None:
    known = {"m": {"a": True, "b": False}, "n": {}}
    assert restore_adapters(waiting_file({}, known)) == known
    for content in ("", "{", "[]", '{"adapters": 7}', '{"adapters": {"m": [1]}}', waiting_file({}, {})):
        assert restore_adapters(content) == {}


@pytest.mark.parametrize(
    "adapters", [None, "a", 7, {}, [None], ["a"], [{"name": 1}], [{"name": "a:b"}], [{"name": "x" * 41}], [{}]]
)
def test_what_nobody_checked_names_no_adapter(adapters: Any) -> None:
    assert adapter_names({"adapters": adapters}) == ()


def test_at_most_sixteen_and_each_once() -> None:
    assert adapter_names({"adapters": [{"name": "a"}] * 3}) == ("a",)
    assert len(adapter_names({"adapters": [{"name": f"a{number}"} for number in range(99)]})) == 16
