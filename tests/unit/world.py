"""A cluster in a few lines around the in-memory API: a scheduler and kubelet that move pods on, and the operator.

Pods have no node unless `Kubelet.place` is set.

The operator here is the real one but for its watch: `Operator` delivers the journal of the API to the real intake,
takes keys from the real queue and hands them to the real worker.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from qwen_operator import objects
from qwen_operator.api.adapters import adapter_names
from qwen_operator.api.conditions import Reason
from qwen_operator.api.name_index import NameIndex
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubCheckpoint, HubQuery
from qwen_operator.config.types import Config, GatewayConfig
from qwen_operator.controller.arbiter import Arbiter, Wiring
from qwen_operator.controller.cache import WATCHED, Store
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.execute import Actor
from qwen_operator.controller.free_nodes import FreeNodes
from qwen_operator.controller.hub_reader import Fetch, HubReader
from qwen_operator.controller.node_pods import NodePods
from qwen_operator.controller.observe import Observer
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.controller.resync import Resync, labels_of
from qwen_operator.controller.volume_claims import VolumeClaims
from qwen_operator.controller.worker import Reconciler, Worker
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
    Resource,
)
from qwen_operator.manifests.adapters import wanted_adapters
from qwen_operator.manifests.cached_adapters import shares_adapters
from qwen_operator.manifests.model_cache import VOLUME
from qwen_operator.manifests.names import (
    ENGINE_CONTAINER,
    FETCH_CONTAINER,
    INSPECTION_CONTAINER,
    LABEL_ROLE,
    ROLE_FETCH,
)
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.objects import key_of, mapping
from qwen_operator.planning import plan as planning
from qwen_operator.planning.types import EngineDefaults, EngineSource, NoFit, Plan
from qwen_operator.replicas.adapters import AdaptersPage, awaits
from qwen_operator.replicas.pod_state import PodState, fetch_of
from qwen_operator.scaling.types import ScalingState
from qwen_operator.status.progress import ProgressPage
from qwen_runtime.adapter_list import digest
from qwen_runtime.checkpoints.adapter import AdapterFacts
from tests.unit.checkpoints.reports import V1
from tests.unit.fakes import Clock, Crash, FakeKube, matches

CONFIG = Config(
    namespaces=(),
    namespace="system",
    pod_name="operator-0",
    image=RuntimeImage("example/qwen-operator:1"),
    engine=EngineDefaults(image="example/sglang", version="0.5.23"),
    pools=(),
    gateway=GatewayConfig("system", "keys", "none"),
)
REPORT = V1 | {"weightBytes": 928_000_000, "tensors": 291}
ANY_ADAPTER = AdapterFacts(8, ("q_proj",), 1, 0, 0, 0, 0, 1024).to_record()
CUT: Manifest = {
    "version": 1,
    "error": {
        "reason": "TruncatedWeights",
        "message": "model-2.safetensors has 66 bytes, its header needs 99",
        "file": "model-2.safetensors",
        "bytesWanted": 99,
        "bytesFound": 66,
    },
}


def deployment(name: str = "chat", namespace: str = "team", **spec: Any) -> Manifest:
    return {
        "apiVersion": "qwen-operator.dev/v1alpha1",
        "kind": "QwenDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": "Qwen/Qwen1.5-0.5B-Chat", **spec},
    }


def node(name: str = "gpu-1", gpus: int = 8, memory: int = 81559, product: str = "NVIDIA-H100-80GB-HBM3") -> Manifest:
    amount = {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": str(gpus)}
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.count": str(gpus),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"capacity": amount, "allocatable": amount},
    }


def with_groups(pods: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on each replica has so many pods, of one GPU each. Everything but the number is the real thing, so that
    a small model tests replicas of any size."""
    gate = planning.runnable

    def opened(result: Plan | NoFit, facts: Checkpoint, source: EngineSource, most_nodes: int = 1) -> Plan | NoFit:
        passed = gate(result, facts, source, most_nodes)
        if isinstance(passed, NoFit) or pods == 1:
            return passed
        return replace(passed, nodes_per_replica=pods, gpus_per_replica=pods, tensor_parallel=pods)

    monkeypatch.setattr(planning, "runnable", opened)


def change(world: World, **spec: Any) -> None:
    """Somebody edits the spec of `chat`."""
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(spec))


def edit_image(pod: Manifest) -> None:
    """Somebody edits the image of the engine, and the API server records who."""
    pod["spec"]["containers"][0]["image"] = "evil:1"
    fields: Manifest = {"f:spec": {"f:containers": {f'k:{{"name":"{ENGINE_CONTAINER}"}}': {"f:image": {}}}}}
    pod["metadata"]["managedFields"] = [{"manager": "kubectl-set", "operation": "Update", "fieldsV1": fields}]


Behaviour = Callable[[Manifest], Manifest | None]
"""From a pod to its next status, or None when it stays as it is."""


def ready_status(pod: Manifest) -> Manifest:
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": ENGINE_CONTAINER, "state": {"running": {}}, "restartCount": 0}],
    }


def ended_status(container: str, code: int, message: str, finished: str) -> Manifest:
    ended = {
        "exitCode": code,
        "message": message,
        "finishedAt": finished,
        "reason": "Completed" if code == 0 else "Error",
    }
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": container, "state": {"terminated": ended}, "restartCount": 0}],
    }


def fetched_before(
    message: str = '{"version": 1, "bytes": 7, "hubBytes": 7}', finished: str = "2026-11-01T00:00:00Z"
) -> Manifest:
    """The end of a pod that fetched a model before engine pods need it."""
    ended = {"exitCode": 0, "message": message, "finishedAt": finished}
    return {
        "phase": "Succeeded",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [{"name": FETCH_CONTAINER, "restartCount": 0, "state": {"terminated": ended}}],
    }


@dataclass
class Kubelet:
    """Moves pods on: engines become ready, inspections report, what is deleted ends."""

    api: FakeKube
    report: Manifest = field(default_factory=lambda: REPORT)
    engine: Behaviour = ready_status
    inspection: Behaviour | None = None
    fetch: Behaviour = lambda _pod: fetched_before()
    place: bool = False
    full: set[str] = field(default_factory=set)
    """Nodes that somebody fills whom the operator does not see. The scheduler says of their pods that it cannot place
    them."""

    def step(self) -> bool:
        moved = False
        for pod in list(self.api.all(PODS)):
            if "deletionTimestamp" in pod["metadata"]:
                self.api.finish(pod, PODS)
                moved = True
                continue
            if pod["spec"].get("schedulingGates"):
                continue
            if self.place and not pod["spec"].get("nodeName"):
                moved = self._placed(pod) or moved
                continue
            new = self._next(pod)
            if new is not None and "podIP" in pod["status"]:
                new = {**new, "podIP": pod["status"]["podIP"]}
            if new is not None and new != pod["status"]:
                changed = copy.deepcopy(pod)
                changed["status"] = new
                self.api.put(PODS, changed)
                moved = True
        return moved

    def _placed(self, pod: Manifest) -> bool:
        """Bind a pod to the node that has the fewest pods; False if there is none for it. Nodes here say nothing of
        their condition unless something is wrong."""
        pods = Counter(item["spec"].get("nodeName") for item in self.api.all(PODS))
        replica = pod["metadata"]["labels"].get("qwen-operator.dev/replica")
        apart = {
            item["spec"].get("nodeName")
            for item in self.api.all(PODS)
            if replica and item["metadata"]["labels"].get("qwen-operator.dev/replica") == replica
        }
        if "podAntiAffinity" not in pod["spec"].get("affinity", {}):
            apart = set()
        free = [
            item["metadata"]["name"]
            for item in self.api.all(NODES)
            if (not item["spec"].get("unschedulable") or _tolerates_cordons(pod))
            and not item["status"].get("conditions")
            and item["metadata"]["name"] not in apart | self.full
            and self._free(item) >= _gpus(pod)
            and item["metadata"]["name"] in (_pinned_to(pod) or [item["metadata"]["name"]])
            and pod["spec"].get("nodeSelector", {}).items() <= item["metadata"]["labels"].items()
        ]
        if not free:
            if self.full:
                refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                name = pod["metadata"]["name"]
                self.api.edit(PODS, name, lambda item: item["status"].update(conditions=[refused]))
            return False
        chosen = min(free, key=lambda name: (pods[name], name))
        self.api.edit(PODS, pod["metadata"]["name"], lambda item: item["spec"].update(nodeName=chosen))
        return True

    def _free(self, node: Manifest) -> int:
        here = [pod for pod in self.api.all(PODS) if pod["spec"].get("nodeName") == node["metadata"]["name"]]
        return int(node["status"]["allocatable"]["nvidia.com/gpu"]) - sum(map(_gpus, here))

    def _next(self, pod: Manifest) -> Manifest | None:
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            return None
        if pod["metadata"]["name"].endswith("-inspect"):
            return self.inspection(pod) if self.inspection else self.inspected(pod)
        if pod["metadata"].get("labels", {}).get(LABEL_ROLE) == ROLE_FETCH:
            return self.fetch(pod)
        return self.engine(pod) if self._group_is_whole(pod) else None

    def inspected(self, pod: Manifest) -> Manifest:
        """The end of an inspection with the report. Adapters that the report lacks fit every base."""
        command = pod["spec"]["containers"][0]["command"]
        commits = ["a" * 40 for word in command if word.startswith("--remote=")]
        records = [ANY_ADAPTER for word in command if word.startswith(("--adapter=", "--remote="))]
        adapters: dict[str, Any] = {"adapters": records} if records else {}
        if commits:
            adapters |= {"adapterCommits": [*commits, *[""] * (len(records) - len(commits))]}
        code = 1 if "error" in self.report else 0
        return ended_status(INSPECTION_CONTAINER, code, json.dumps(adapters | self.report), self.api.clock.stamp())

    def _group_is_whole(self, pod: Manifest) -> bool:
        """An engine of several pods answers in none of them before all of them know the first one."""
        needed = int(pod["metadata"].get("annotations", {}).get("qwen-operator.dev/replica-pods", 1))
        if needed == 1:
            return True
        replica = pod["metadata"]["labels"].get("qwen-operator.dev/replica")
        if replica is None:
            return True
        members = [
            one
            for one in self.api.all(PODS)
            if one["metadata"]["labels"].get("qwen-operator.dev/replica") == replica
            and not one["spec"].get("schedulingGates")
            and (one["spec"].get("nodeName") or not self.place)
        ]
        leaders = [one for one in members if one["metadata"]["labels"]["qwen-operator.dev/rank"] == "0"]
        if len(members) < needed or not leaders:
            return False
        if not leaders[0]["status"].get("podIP"):
            self._give_address(leaders[0])
            return False
        words = f"{leaders[0]['status']['podIP']} {leaders[0]['metadata']['uid']}"
        told = [one["metadata"]["annotations"].get("qwen-operator.dev/group-leader") for one in members]
        return told.count(words) == needed - 1

    def _give_address(self, pod: Manifest) -> None:
        address = f"10.0.0.{int(pod['metadata']['uid'].removeprefix('uid-')) % 250}"
        self.api.edit(PODS, pod["metadata"]["name"], lambda item: item["status"].update(podIP=address))


def _tolerates_cordons(pod: Manifest) -> bool:
    return any(one.get("key") == "node.kubernetes.io/unschedulable" for one in pod["spec"].get("tolerations", ()))


def _pinned_to(pod: Manifest) -> list[str]:
    """The only nodes that the pod's node affinity allows by name; none if it names none."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return [name for term in terms for one in term.get("matchFields", []) for name in one["values"]]


def _gpus(pod: Manifest) -> int:
    return sum(int(one["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) for one in pod["spec"]["containers"])


def in_cache(api: FakeKube, engine: PodState, path: str) -> bool:
    """Whether an engine finds an adapter: on a claim, in its own pod, or where a pod has fetched it by now."""
    # The operator's view has no mounts.
    template = next((pod for pod in api.all(PODS) if pod["metadata"]["uid"] == engine.uid), engine.manifest)
    if not path.startswith("/models/adapters/.fetched/") or not (volume := shares_adapters(template)):
        return True
    option = f"--folder=adapters/{path.removeprefix('/models/adapters/.fetched/')}"
    return any(
        option in " ".join(fetch.get("command", ()))
        and (objects.holds(pod, "Ready") or fetch_of(pod).finished)
        and (volume == VOLUME or objects.node_of(pod) == engine.node)
        for _, resource, pod in api.journal
        if resource is PODS
        for fetch in pod["spec"].get("initContainers", ())
    )


Load = Callable[[str, str, str], ScalingState | None]
"""What the autoscaler says about a namespace, name and uid."""


async def no_hub(query: HubQuery, _seconds: float) -> HubCheckpoint:
    raise AssertionError(f"a hub was asked for {query}")


class Operator:
    """One operator process: whatever it knows is gone when it ends."""

    def __init__(
        self, api: FakeKube, config: Config, load: Load = lambda _namespace, _name, _uid: None, fetch: Fetch = no_hub
    ) -> None:
        self.api = api
        self.store = Store(NameIndex(config.name_rights, api.clock.now, config.namespaces))
        self.queue = WorkQueue(clock=api.clock.monotonic, random=lambda: 0.5)
        self.intake = Intake(self.store, self.queue)
        self.outcomes: Counter[str] = Counter()
        self.pages: dict[str, ProgressPage] = {}
        self.adapter_pages: dict[str, AdaptersPage] = {}
        self.unloadable: dict[str, str] = {}
        self.resync = Resync(api, self.intake, config, lambda: 0.5, api.clock.monotonic)
        self.hub = HubReader(fetch, self.queue.add, api.clock.now)
        wiring = Wiring(
            readable=self.resync.readable,
            wake=self.queue.add,
            working=self.queue.works_on,
            clock=api.clock.monotonic,
            now=api.clock.now,
            enabled=config.arbiter,
        )
        self.arbiter = Arbiter(self.store, NodePods(api, api.clock.monotonic), wiring)
        observer = Observer(self.store, config.pools, load, self.hub.answer_for, lambda: self.pages)
        observer.grants = self.arbiter.grant
        observer.adapter_pages = lambda: self.adapter_pages
        reconciler = Reconciler(
            observer,
            Actor(api, self.store, api.clock.now),
            config,
            api.clock.now,
            hub=self.hub,
            claims=VolumeClaims(api, api.clock.monotonic),
            on_ask=self.arbiter.heard,
            free_nodes=FreeNodes(NodePods(api, api.clock.monotonic)),
        )
        self.worker = Worker(self.queue, reconciler, self._count)
        self.lagging = False
        self._delivered = 0

    async def start(self) -> None:
        self._delivered = len(self.api.journal)
        await self.resync.once()

    async def step(self) -> bool:
        """Deliver what happened, work until nothing waits; whether anything was worked on."""
        worked = self.deliver()
        self._ask_engines()
        while self.hub.has_queries:
            await self.hub.answer_next()
        for _ in range(100):
            key = self.queue.take()
            if key is None:
                await self.arbiter.look()
                self.arbiter.stand_aside()
                key = self.queue.take()
            if key is None:
                return worked
            worked = True
            await self.worker.work(key)
            self.deliver()
        raise AssertionError("the queue does not come to rest")

    def _ask_engines(self) -> None:
        """Every engine loads and unloads adapters at once, but for those that are `unloadable` or not there, and says
        so."""
        before, self.adapter_pages = self.adapter_pages, {}
        for item in self.store.deployments():
            for pod in self.store.engine_pods(item) if adapter_names(mapping(item, "spec")) else ():
                if text := awaits(pod):
                    there = {name for name, path in wanted_adapters(text).items() if in_cache(self.api, pod, path)}
                    failed = {name: why for name, why in self.unloadable.items() if name in there}
                    loaded = frozenset(there - failed.keys())
                    self.adapter_pages[pod.uid] = AdaptersPage(digest(text), loaded, failed)
                    if before.get(pod.uid) != self.adapter_pages[pod.uid]:
                        self.queue.add(key_of(item))

    def deliver(self) -> bool:
        """The watch: events of what the label selectors show. While it lags, nothing comes."""
        if self.lagging:
            return False
        events = self.api.journal[self._delivered :]
        self._delivered = len(self.api.journal)
        for kind, resource, manifest in events:
            if resource in WATCHED and self.api.may_read(resource, manifest["metadata"].get("namespace")):
                # Leaving the selection is a deletion to who watches it.
                self.intake.event(resource, kind if matches(manifest, labels_of(resource)) else "DELETED", manifest)
        return bool(events)

    def miss(self) -> None:
        """The watch loses what it has not delivered yet."""
        self._delivered = len(self.api.journal)

    def _count(self, outcome: str, _seconds: float) -> None:
        self.outcomes[outcome] += 1


@dataclass
class World:
    """An API, a kubelet and an operator, which is started anew whenever it crashes."""

    config: Config = CONFIG
    api: FakeKube = field(default_factory=lambda: FakeKube(Clock()))
    crashes: int = 0
    fetch: Fetch = no_hub
    wanted: int | None = None
    busy: set[str] = field(default_factory=set)
    order: tuple[str, ...] = ()
    blind: bool = False

    def load(self, _namespace: str, _name: str, _uid: str) -> ScalingState | None:
        """Every engine is idle but those that a test calls `busy` (by the pod's name), which have two requests;
        `wanted` as the test says. Nothing is known of the load while the world is `blind`."""
        if self.blind:
            return None
        working = {pod["metadata"]["uid"]: pod["metadata"]["name"] in self.busy for pod in self.api.all(PODS)}
        return ScalingState(
            self.wanted,
            Reason.STEADY,
            "as the test says",
            True,
            removal_order=self.order,
            idle=frozenset(uid for uid, busy in working.items() if not busy),
            unfinished={uid: 2 for uid, busy in working.items() if busy},
        )

    def __post_init__(self) -> None:
        self.kubelet = Kubelet(self.api)
        self.operator = Operator(self.api, self.config, self.load, self.fetch)
        self.api.put(NODES, node())

    async def start(self) -> World:
        await self._survive(self.operator.start)
        return self

    async def restart(self) -> None:
        self.operator = Operator(self.api, self.config, self.load, self.fetch)
        await self.start()

    async def settle(self, seconds: float = 120.0) -> None:
        """Let time pass in steps of a second until nothing moves any more, at most so long."""
        quiet = 0
        for _ in range(int(seconds) + 10):
            moved = self.kubelet.step()
            worked = await self._survive(self.operator.step)
            self.api.clock.advance(1.0)
            quiet = 0 if moved or worked else quiet + 1
            if quiet > 5 and not self.operator.queue.has_appointments:
                return

    async def wait(self, seconds: int) -> None:
        """Let exactly so much time pass."""
        for _ in range(seconds):
            self.kubelet.step()
            await self._survive(self.operator.step)
            self.api.clock.advance(1.0)

    async def _survive(self, step: Callable[[], Any]) -> Any:
        try:
            return await step()
        except Crash:
            self.crashes += 1
            self.operator = Operator(self.api, self.config, self.load, self.fetch)
            await self._survive(self.operator.start)
            return True

    # What the tests look at.

    def qd(self, name: str = "chat") -> Manifest:
        return self.api.one(QWENDEPLOYMENTS, name)

    def names(self, resource: Resource = PODS) -> list[str]:
        return [item["metadata"]["name"] for item in self.api.all(resource)]

    def conditions(self, name: str = "chat") -> dict[str, tuple[str, str]]:
        status = self.qd(name).get("status") or {}
        return {item["type"]: (item["status"], item["reason"]) for item in status.get("conditions") or ()}

    def message(self, kind: str, name: str = "chat") -> str:
        return next(str(c["message"]) for c in self.qd(name)["status"]["conditions"] if c["type"] == kind)

    def events(self) -> Counter[str]:
        return Counter(item["reason"] for item in self.api.all(EVENTS))

    def state(self) -> Manifest:
        """Everything that stays, without what differs between two runs that ended the same way."""
        objects: Manifest = {}
        for resource in (QWENDEPLOYMENTS, PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS):
            for item in self.api.all(resource):
                objects[f"{resource.plural}/{item['metadata']['name']}"] = _timeless(item)
        return objects


_TIMES = {
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "lastTransitionTime",
    "time",
    "managedFields",
    "finishedAt",
    "since",
}


# Times, uids and addresses of which it matters that they are there.
_SOME = {
    "podIP",
    "qwen-operator.dev/group-leader",
    "qwen-operator.dev/released-at",
    "qwen-operator.dev/fetch-pods",
}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
        return {
            key: "some" if key in _SOME else item for key, item in kept.items() if key != "qwen-operator.dev/owner-uid"
        }
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    return value


async def settled(*manifests: Manifest, engine: Behaviour = ready_status, **more: Any) -> World:
    """A world in which these QwenDeployments were made and have come to rest."""
    world = await World().start()
    world.kubelet.engine = engine
    world.kubelet.report = more.get("report", REPORT)
    for manifest in manifests:
        world.api.put(QWENDEPLOYMENTS, manifest)
    await world.settle()
    return world
