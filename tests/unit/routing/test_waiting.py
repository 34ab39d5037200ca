"""Which names have a holder and no ready worker, step by step."""

import json
from typing import Any

from qwen_operator.routing.membership import GatewayView, Membership, advance
from qwen_operator.routing.waiting import WaitingName, waiting_file, waiting_names
from tests.unit.gateway.objects import Manifest, asking, deleting, deployment, pod, unready, worker
from tests.unit.routing.test_membership import NAMING

D, P0 = deployment("d"), pod("d-0", "d")


class World:
    """The steps of an agent. `answers`: whether smg answers; `registers`: whether it takes new workers."""

    def __init__(self) -> None:
        self.membership, self.waiting = Membership(), dict[str, WaitingName]()
        self.workers: Any = []

    def step(self, deployments: list[Manifest], pods: list[Manifest]) -> list[str]:
        observed = GatewayView(deployments, pods, self.workers)
        self.membership = advance(observed, self.membership, NAMING)
        self.waiting = waiting_names(observed, self.membership, self.waiting)
        return list(self.waiting)

    def smg_registers_all(self) -> None:
        self.workers = [worker(entry.id, entry.url) for entry in self.membership.entries]


def test_a_name_waits_from_its_grant_until_smg_reports_a_worker_and_again_without_one() -> None:
    world = World()
    assert world.step([D], []) == ["m"]
    assert world.step([D], [P0]) == ["m"]
    world.smg_registers_all()
    assert world.step([D], [P0]) == []
    assert world.step([D], [unready(P0)]) == ["m"]
    assert world.step([], [unready(P0)]) == []


def test_a_worker_that_stays_for_its_replacement_serves_the_name() -> None:
    world = World()
    world.step([D], [P0])
    world.smg_registers_all()
    world.step([D], [P0])
    assert world.step([D], [deleting(P0), pod("d-1", "d", "10.0.0.6")]) == []


def test_while_smg_does_not_answer_nothing_changes() -> None:
    world = World()
    world.step([D], [P0])
    world.workers = None
    assert world.step([D], [P0]) == ["m"]
    world.smg_registers_all()
    assert world.step([D], [P0]) == []
    world.workers = None
    assert world.step([D], [P0]) == []
    assert world.step([D], []) == ["m"]


def test_only_a_granted_name_waits_and_no_fifth_one() -> None:
    world = World()
    assert world.step([asking(D, servedNames=["other"])], []) == []
    assert world.step([deployment("d", servedNames=["e", "d", "c", "b", "a"])], []) == ["b", "c", "d", "e"]
    assert world.step([deleting(D)], []) == []


def test_what_the_file_says() -> None:
    world = World()
    off, on = deployment("off", model="o", replicas=0), deployment("on", model="p", replicas=1)
    world.step([D, off, on, deployment("rests", model="q", suspend=True, replicas=0)], [])
    stopped = {"m": "", "o": "spec.replicas is 0", "p": "", "q": "spec.suspend is true"}
    assert json.loads(waiting_file(world.waiting, {})) == {
        "version": 1,
        "waiting": {
            name: {"stopped": field, "stalled": False, "startupSeconds": 0, "startedAt": 0}
            for name, field in stopped.items()
        },
    }


def test_the_planned_start_and_the_first_container_that_runs() -> None:
    def running(name: str, second: int) -> Manifest:
        state = {"state": {"running": {"startedAt": f"2026-01-01T00:00:{second:02}Z"}}}
        manifest = unready(pod(name, "d", f"10.0.0.{second}"))
        return {**manifest, "status": {**manifest["status"], "containerStatuses": [state]}}

    world = World()
    stalled = {"type": "Stalled", "status": "True"}
    status = {**D["status"], "plan": {"startupSeconds": 90}, "conditions": [{"type": "Ready", "status": "False"}]}
    world.step([{**D, "status": status}], [running("d-0", 20), running("d-1", 10), deleting(running("d-2", 5))])
    assert world.waiting["m"] == WaitingName("m", "", False, 90, 1767225610)
    # The kubelet restarts a pod that exists, whatever the operator waits for.
    world.step([{**D, "status": {**status, "conditions": [stalled]}}], [unready(P0)])
    assert world.waiting["m"] == WaitingName("m", "", False, 90, 0)
    world.step([{**D, "status": {**status, "conditions": [stalled]}}], [deleting(P0)])
    assert world.waiting["m"] == WaitingName("m", "", True, 90, 0)
    # A start that took longer than planned counts, a shorter one does not.
    for seen, seconds in ((120, 120), (30, 90), ("x", 90), (2**60, 90)):
        world.step([{**D, "status": {**status, "observed": {"startupSeconds": seen}}}], [])
        assert world.waiting["m"].startup_seconds == seconds
    for wrong in (None, "90", True, -1, 2**60):
        world.step([{**D, "status": {**status, "plan": {"startupSeconds": wrong}, "conditions": wrong}}], [])
        assert world.waiting["m"] == WaitingName("m")


def test_a_start_after_a_download_begins_when_that_ends() -> None:
    progress = {"phase": "Download", "pod": "d-0", "finishTime": "2026-01-01T00:10:00Z"}
    status = {**D["status"], "plan": {"startupSeconds": 90}, "progress": progress}
    world = World()
    world.step([{**D, "status": status}], [unready(P0)])
    assert world.waiting["m"] == WaitingName("m", "", False, 90, 1767226200)
    running = {"containerStatuses": [{"state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}}]}
    loads = unready(P0)
    world.step([{**D, "status": status}], [{**loads, "status": {**loads["status"], **running}}])
    assert world.waiting["m"].started_at == 1767225610, "another replica is farther"
    wrongs: tuple[Any, ...] = (None, "soon", {}, "2026-01-01")
    for wrong in (*({**progress, "finishTime": time} for time in wrongs), {**progress, "phase": "LoadWeights"}):
        world.step([{**D, "status": {**status, "progress": wrong}}], [unready(P0)])
        assert world.waiting["m"].started_at == 0


def test_a_pod_that_only_has_the_label_of_a_stalled_model_is_no_reason_to_wait() -> None:
    stalled = {**D["status"], "conditions": [{"type": "Stalled", "status": "True"}]}
    foreign = {**P0, "metadata": {**P0["metadata"], "ownerReferences": []}}
    world = World()
    world.step([{**D, "status": stalled}], [foreign])
    assert world.waiting["m"].stalled
    world.step([{**D, "status": stalled}], [foreign, unready(P0)])
    assert not world.waiting["m"].stalled
