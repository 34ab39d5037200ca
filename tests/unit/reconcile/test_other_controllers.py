"""Life among admission policies, service meshes, node autoscalers, storage and backups."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.fields import Passthrough
from qwen_operator.api.pod import LocalReference, Pod, Resources
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Forbidden,
    Manifest,
)
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.replicas.pod_state import REST_SECONDS
from qwen_operator.tenancy.lists import Mode, Tenancy
from tests.unit.world import CONFIG, REPORT, World, change, deployment, ended_status, node, ready_status, settled

TRUSTED = replace(CONFIG, tenancy=Tenancy(mode=Mode.TRUSTED))
TOLERATION = Passthrough({"key": "team", "operator": "Exists"})
CLAIM: Manifest = {"source": {"uri": "pvc://models/chat"}}


def claim(phase: str = "Bound", storage_class: str = "fast") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": "team"},
        "spec": {"storageClassName": storage_class},
        "status": {"phase": phase},
    }


def stays(_pod: Manifest) -> None:
    """The pod does not move on."""


def crashed(pod: Manifest) -> Manifest:
    """The engine ended and is being started again."""
    status = ended_status("engine", 137, json.dumps({"reason": "EngineKilled", "phase": "Serving"}), pod["created"])
    ended = status["containerStatuses"][0]["state"]
    container = {"name": "engine", "state": {"running": {}}, "lastState": ended, "restartCount": 1}
    return {**status, "phase": "Running", "containerStatuses": [container]}


async def inspected(world: World) -> World:
    await world.start()
    world.kubelet.report = REPORT
    world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
    await world.settle()
    return world


class TestInspection:
    @pytest.mark.parametrize("report", [REPORT, {"error": {"reason": "TruncatedWeights", "message": "too short"}}])
    async def test_it_ends_with_its_own_container_whatever_a_mesh_added(self, report: Manifest) -> None:
        world = await World().start()
        world.kubelet.report = report

        def beside_a_proxy(pod: Manifest) -> Manifest:
            status = world.kubelet.inspected(pod)
            proxy = {"name": "istio-proxy", "state": {"running": {}}, "restartCount": 0}
            return {**status, "phase": "Running", "containerStatuses": [proxy, *status["containerStatuses"]]}

        world.kubelet.inspection = beside_a_proxy
        world.api.put(QWENDEPLOYMENTS, deployment(**CLAIM))
        await world.settle(5)
        ready = ("True", "Serving") if report is REPORT else ("False", "TruncatedWeights")
        assert world.conditions()["Ready"] == ready

    @pytest.mark.parametrize(
        ("words", "reason", "says"),
        [
            ("violates PodSecurity", "PodRefused", "violates PodSecurity"),
            ("failed quota: cpu: must specify limits.cpu", "QuotaExceeded", "limits.cpu"),
            ("maximum memory usage per Container is 256Mi, but limit is 512Mi", "PodRefused", "a LimitRange"),
        ],
    )
    async def test_a_refused_one_is_told_with_the_words(self, words: str, reason: str, says: str) -> None:
        world = World()

        def admit(verb: str, manifest: Manifest) -> None:
            if manifest["metadata"]["name"].endswith("-inspect"):
                raise Forbidden(403, "Forbidden", words)

        world.api.admit = admit
        await inspected(world)
        assert world.conditions()["Ready"] == ("False", reason)
        assert world.conditions()["Planned"] == ("False", reason)
        assert says in world.message("Planned")
        assert world.events()[reason] == 1
        assert ("Stalled" in world.conditions()) is (reason == "PodRefused")
        world.api.admit = lambda _verb, _manifest: None
        await world.settle(400)
        assert world.conditions()["Ready"] == ("True", "Serving")

    async def test_the_same_files_are_read_once(self) -> None:
        """Another label, node or priority does not change them. Another user may not be able to read them."""
        world = await inspected(World())
        edits: tuple[Manifest, ...] = (
            {"pod": {"labels": {"team": "blue"}}},
            {"contextTokens": 2048},
            {"pod": {"nodeSelector": {}, "priorityClassName": "high"}},
        )
        for edit in edits:
            change(world, **edit)
            await world.settle()
        assert world.conditions()["Ready"] == ("True", "Serving")
        assert self.inspections(world) == 1
        for edit in (
            {"pod": {"securityContext": {"runAsUser": 1000}}},
            {"source": {"uri": "pvc://models/chat-2"}},
            {"source": {"uri": "pvc://models-2/chat-2"}},
        ):
            before = self.inspections(world)
            change(world, **edit)
            await world.settle()
            assert self.inspections(world) == before + 1, edit

    async def test_a_replan_reads_them_again(self) -> None:
        world = await inspected(World())
        world.api.edit(
            QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "1"})
        )
        await world.settle()
        assert self.inspections(world) == 2
        change(world, pod={"labels": {"a": "b"}})
        await world.settle()
        assert self.inspections(world) == 2, "the revision says which replan it belongs to"

    @staticmethod
    def inspections(world: World) -> int:
        return sum(write.verb == "create" and write.name.endswith("-inspect") for write in world.api.writes)

    @pytest.mark.parametrize(("phase", "near"), [("Bound", False), ("Pending", True), (None, True)])
    async def test_it_needs_a_gpu_node_only_where_the_claim_may_still_bind(self, phase: str | None, near: bool) -> None:
        world = World()
        if phase:
            world.api.put(PERSISTENT_VOLUME_CLAIMS, claim(phase))
        world.kubelet.inspection = stays
        await inspected(world)
        (pod,) = world.api.all(PODS)
        kinds = pod["spec"]["affinity"]["nodeAffinity"]
        required = "requiredDuringSchedulingIgnoredDuringExecution" in kinds
        assert (required, "preferredDuringSchedulingIgnoredDuringExecution" in kinds) == (near, not near)

    async def test_an_unbound_claim_is_named_with_its_class(self) -> None:
        world = World()
        world.api.put(PERSISTENT_VOLUME_CLAIMS, claim("Pending", "fsat"))
        words = '0/3 nodes are available: storageclass.storage.k8s.io "fsat" not found.'
        unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        world.kubelet.inspection = lambda _pod: {"phase": "Pending", "conditions": [unschedulable]}
        await inspected(world)
        assert world.conditions()["Ready"] == ("False", "ClaimNotBound")
        assert 'the claim "models" of the StorageClass "fsat" is not bound' in world.message("Ready")
        assert words.rstrip(".") in world.message("Ready")

    async def test_a_scheduler_that_does_not_exist_is_named(self) -> None:
        world = await World(config=TRUSTED).start()
        world.kubelet.engine = world.kubelet.inspection = stays
        world.api.put(QWENDEPLOYMENTS, deployment(pod={"schedulerName": "gang"}))
        world.api.put(QWENDEPLOYMENTS, deployment("mounted", pod={"schedulerName": "gang"}, **CLAIM))
        await world.settle()
        for name in ("chat", "mounted"):
            assert "the scheduler 'gang', which spec.pod.schedulerName names" in world.message("Ready", name)


class TestWhatServes:
    async def test_its_crash_is_told_while_a_new_revision_waits(self) -> None:
        world = await inspected(World())
        world.kubelet.inspection = stays
        change(world, source={"uri": "pvc://models/next"})
        await world.settle()
        assert world.conditions()["Ready"] == ("True", "Serving")
        world.kubelet.engine = lambda pod: crashed({"created": world.api.clock.stamp()}) if not_yet(pod) else None
        await world.settle()
        assert world.conditions()["Ready"] == ("False", "EngineKilled")
        assert world.message("Ready").endswith(
            "the changed spec is not in use yet: the inspection pod reads the files of pvc://models/next"
        )
        assert world.conditions()["Planned"] == ("False", "Inspecting")
        assert world.conditions()["Reconciling"] == ("True", "Inspecting")
        assert world.events()["EngineKilled"] == 1

    @pytest.mark.parametrize("started", [True, False])
    async def test_every_eviction_has_an_event(self, started: bool) -> None:
        world = await settled(deployment(replicas=2))
        first, second = world.names()
        for name in (first, second):
            evicted: Manifest = {"phase": "Failed", "reason": "Evicted", "message": "low on memory: ephemeral-storage"}
            if started:
                end = {"terminated": {"exitCode": 137, "finishedAt": world.api.clock.stamp()}}
                evicted["containerStatuses"] = [{"name": "engine", "state": end}]
            else:
                evicted["startTime"] = world.api.clock.stamp()
            world.api.edit(PODS, name, with_status(evicted))
            await world.settle()
        texts = [item["message"] for item in world.api.all(EVENTS) if item["reason"] == "Evicted"]
        assert sorted(text.split(" ")[0] for text in texts) == [first, second]
        assert all("low on memory" in text for text in texts)

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            # k8s-device-plugin: no healthy GPU is left, and the scheduler sends every next pod there.
            ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"),
            ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
            ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu, requested: 1, used: 8"),
        ],
    )
    async def test_a_node_that_refuses_every_pod_gets_no_pod_a_second(self, reason: str, words: str) -> None:
        world = await World().start()
        made = []

        def refused(pod: Manifest) -> Manifest:
            made.append(pod["metadata"]["uid"])
            message = f"Pod was rejected: {words}"
            return {"phase": "Failed", "reason": reason, "message": message, "startTime": world.api.clock.stamp()}

        world.kubelet.engine = refused
        world.api.put(QWENDEPLOYMENTS, deployment())
        await world.wait(600)
        assert 600 / (REST_SECONDS + 5) <= len(set(made)) <= 600 / REST_SECONDS + 1
        assert world.conditions()["Ready"] == ("False", "PodRefused")
        assert words in world.message("Ready")
        assert "look at the device plugin of the node, or cordon it" in world.message("Ready")
        assert world.events()["PodRefused"]
        assert world.qd()["status"]["lastFailure"]["reason"] == "PodRefused"
        # One that takes the pod ends it.
        world.kubelet.engine = ready_status
        await world.settle()
        assert world.conditions()["Ready"] == ("True", "Serving")

    async def test_every_lost_node_has_an_event(self) -> None:
        world = await World().start()
        world.kubelet.place = True
        world.api.put(NODES, node("gpu-2"))
        world.api.put(QWENDEPLOYMENTS, deployment(replicas=2))
        await world.settle()
        lost = world.api.all(PODS)[0]["spec"]["nodeName"]
        world.api.finish(world.api.one(NODES, lost), NODES)
        await world.settle()
        texts = [item["message"] for item in world.api.all(EVENTS) if item["reason"] == "NodeLost"]
        assert len(texts) == 1
        assert lost in texts[0]


def with_status(status: Manifest) -> Callable[[Manifest], None]:
    return lambda pod: pod.update(status=status)


def marked(mark: Manifest) -> Callable[[Manifest], None]:
    return lambda item: item["metadata"]["annotations"].update(mark)


def not_yet(pod: Manifest) -> bool:
    return bool(pod["status"]["containerStatuses"][0].get("restartCount") == 0)


class TestSettingsOfTheChart:
    async def test_an_edit_is_no_upgrade_of_sglang(self) -> None:
        world = await settled(deployment())
        await upgrade(world, replace(CONFIG.engine, version="0.5.22"))
        change(world, contextTokens=2048)
        await world.settle()
        assert self.images(world) == {"example/sglang:v0.5.23"}
        assert "a newer plan is available" in world.message("Planned")
        world.api.edit(
            QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "1"})
        )
        await world.settle()
        assert self.images(world) == {"example/sglang:v0.5.22"}
        change(world, contextTokens=1024)
        await world.settle()
        assert self.images(world) == {"example/sglang:v0.5.22"}
        assert "a newer plan" not in world.message("Planned")

    @pytest.mark.parametrize("engine", [{"version": "0.5.22"}, {"image": "other/sglang:v0.5.22"}])
    async def test_the_spec_chooses_its_own_sglang_and_gives_it_back(self, engine: Manifest) -> None:
        world = await World(config=TRUSTED).start()
        world.api.put(QWENDEPLOYMENTS, deployment())
        await world.settle()
        change(world, engine=engine)
        await world.settle()
        assert self.images(world) == {engine.get("image", "example/sglang:v0.5.22")}
        change(world, engine={}, contextTokens=2048)
        await world.settle()
        assert self.images(world) == {"example/sglang:v0.5.23"}

    async def test_another_repository_of_the_chart_is_used_by_the_next_revision(self) -> None:
        world = await settled(deployment())
        await upgrade(world, EngineDefaults("mirror/sglang", "0.5.22"))
        change(world, contextTokens=2048)
        await world.settle()
        assert self.images(world) == {"mirror/sglang:v0.5.22"}

    @staticmethod
    def images(world: World) -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in world.api.all(PODS)}

    async def test_its_pod_defaults_are_below_the_object(self) -> None:
        defaults = Pod(
            labels={"cost": "shared", "env": "prod"},
            annotations={"note": "all"},
            priority_class_name="batch",
            image_pull_secrets=(LocalReference("registry"),),
            tolerations=(TOLERATION,),
            resources=Resources(limits={"memory": "64Gi"}),
        )
        world = World(config=replace(CONFIG, pod=defaults))
        await world.start()
        own: Manifest = {"labels": {"cost": "team"}, "imagePullSecrets": [{"name": "mine"}, {"name": "registry"}]}
        world.api.put(QWENDEPLOYMENTS, deployment(pod=own))
        world.api.put(QWENDEPLOYMENTS, deployment("mounted", pod=own, servedNames=["other"], **CLAIM))
        await world.settle(2)
        pods = world.api.all(PODS)
        assert len(pods) == 2
        for pod in pods:
            assert (pod["metadata"]["labels"]["cost"], pod["metadata"]["labels"]["env"]) == ("team", "prod")
            assert pod["metadata"]["annotations"]["note"] == "all"
            assert pod["spec"]["priorityClassName"] == "batch"
            assert [secret["name"] for secret in pod["spec"]["imagePullSecrets"]] == ["registry", "mine"]
            assert TOLERATION in pod["spec"]["tolerations"]
        assert pods[0]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "64Gi"

    async def test_a_change_of_them_reaches_no_running_pod(self) -> None:
        world = await settled(deployment())
        before = world.names()
        world.config = replace(world.config, pod=Pod(labels={"env": "prod"}))
        await world.restart()
        await world.settle()
        assert world.names() == before
        assert "a newer plan is available" in world.message("Planned")


async def upgrade(world: World, engine: EngineDefaults) -> None:
    world.config = replace(world.config, engine=engine)
    await world.restart()
    await world.settle()


class TestDisruption:
    @pytest.mark.parametrize(
        ("policy", "replicas", "least"), [("Strict", 3, 3), ("AllowOne", 3, 2), ("AllowOne", 1, None)]
    )
    async def test_the_policy_decides_about_evictions(self, policy: str, replicas: int, least: int | None) -> None:
        world = await settled(deployment(replicas=replicas, disruption={"policy": policy}))
        budgets = [item["spec"]["minAvailable"] for item in world.api.all(POD_DISRUPTION_BUDGETS)]
        assert budgets == ([] if least is None else [least])

    async def test_an_edit_of_it_restarts_nothing(self) -> None:
        world = await settled(deployment(replicas=2))
        before = world.names()
        change(world, disruption={"policy": "AllowOne"})
        await world.settle()
        assert world.names() == before
        assert world.api.all(POD_DISRUPTION_BUDGETS)[0]["spec"]["minAvailable"] == 1


class TestRestoredFromABackup:
    async def test_all_leftovers_are_in_one_message_and_can_be_adopted(self) -> None:
        world = await self.orphaned()
        names = [*world.names(CONTROLLER_REVISIONS), *world.names(POD_DISRUPTION_BUDGETS), *world.names()]
        assert world.conditions()["Ready"] == ("False", "ForeignObject")
        message = world.message("Ready")
        assert all(name in message for name in names), message
        uid = world.qd()["metadata"]["uid"]
        kinds = ("controllerrevision", "poddisruptionbudget", "pod", "pod")
        named = " ".join(f"{kind}/{name}" for kind, name in zip(kinds, names, strict=True))
        assert f"kubectl annotate --overwrite -n team {named} qwen-operator.dev/owner-uid={uid}. Or" in message

        for resource in (CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS, PODS):
            for name in world.names(resource):
                world.api.edit(
                    resource,
                    name,
                    lambda item: item["metadata"]["annotations"].update({"qwen-operator.dev/owner-uid": uid}),
                )
        await world.settle()
        assert world.conditions()["Ready"] == ("True", "Serving")
        assert [*world.names(CONTROLLER_REVISIONS), *world.names(POD_DISRUPTION_BUDGETS), *world.names()] == names
        assert all(pod["metadata"]["ownerReferences"][0]["uid"] == uid for pod in world.api.all(PODS))

    async def test_an_object_of_somebody_else_is_not_offered_for_adoption(self) -> None:
        world = await World().start()
        name = await self.pod_name()
        foreign = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "team"}, "spec": {}}
        world.api.put(PODS, foreign)
        world.kubelet.engine = stays
        world.api.put(QWENDEPLOYMENTS, deployment())
        await world.settle()
        assert f"the Pod {name} already exists" in world.message("Ready")
        assert "kubectl annotate" not in world.message("Ready")

    async def test_beside_an_object_of_somebody_else_the_command_names_what_it_adopts(self) -> None:
        world = await self.orphaned()
        (revision,), (budget,) = world.names(CONTROLLER_REVISIONS), world.names(POD_DISRUPTION_BUDGETS)
        first, second = world.names()
        # A revision that somebody else made, with the operator's label.
        world.api.edit(
            CONTROLLER_REVISIONS,
            revision,
            lambda item: item["metadata"]["annotations"].pop("qwen-operator.dev/owner-uid"),
        )
        await world.settle()
        assert world.message("Ready") == (
            f"the ControllerRevision {revision} already exists and does not belong to this QwenDeployment, so the "
            "operator leaves it alone: delete it, or give this QwenDeployment another name. An earlier QwenDeployment "
            f"of this name made the PodDisruptionBudget {budget}, the Pod {first} and the Pod {second}. To adopt them: "
            f"kubectl annotate --overwrite -n team poddisruptionbudget/{budget} pod/{first} pod/{second} "
            f"qwen-operator.dev/owner-uid={world.qd()['metadata']['uid']}. Or delete them"
        )

    @staticmethod
    async def pod_name() -> str:
        return (await settled(deployment())).names()[0]

    @staticmethod
    async def orphaned() -> World:
        """`kubectl delete qd chat --cascade=orphan`, and made anew."""
        world = await settled(deployment(replicas=2), engine=ready_status)
        for resource in (CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS, PODS):
            for name in world.names(resource):
                world.api.edit(resource, name, lambda item: item["metadata"].pop("ownerReferences"))
        world.api.finish(world.qd(), QWENDEPLOYMENTS)
        await world.settle(3)
        again: dict[str, Any] = copy.deepcopy(deployment(replicas=2))
        world.api.put(QWENDEPLOYMENTS, again)
        await world.settle()
        return world
