"""Mounts of users at paths of the operator."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Spec, parse
from qwen_operator.checkpoints import catalog
from qwen_operator.hardware.inventory import GpuPool, inventory
from qwen_operator.kube import PODS, QWENDEPLOYMENTS
from qwen_operator.manifests.engine_pods import engine_template
from qwen_operator.manifests.mount_paths import mountable
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import CacheType, EngineDefaults, ModelCache, NoFit, Outbound, Plan
from qwen_operator.sources import registry
from qwen_operator.tenancy.lists import Mode, Tenancy
from tests.unit.world import CONFIG, World, deployment

MODEL = "Qwen/Qwen1.5-7B-Chat"
FACTS = catalog.lookup(MODEL)
POOL = GpuPool("p", "NVIDIA-H100-80GB-HBM3", 81559, 8, {}, ())
HUB = EngineDefaults("lmsysorg/sglang", "0.5.23", outbound=Outbound("", "", "authorities", "all.pem"))
CACHED = replace(HUB, cache=ModelCache(CacheType.HOST_PATH, "/var/lib/models", 100, compile=True))
CLAIM: dict[str, Any] = {"source": {"uri": "pvc://models/qwen/7b"}}
ADAPTED = CLAIM | {"adapters": [{"name": "support", "source": {"uri": "pvc://adapters/support"}}]}
FETCHED = hashlib.sha256(b"hf://team/support").hexdigest()[:12]
ALWAYS = ["/qwen-runtime", "/home/qwen", "/tmp"]
CASES: dict[str, tuple[dict[str, Any], EngineDefaults, dict[str, Any], list[str]]] = {
    "a hub with the chart's certificates": ({}, HUB, {}, ["/etc/qwen-ca"]),
    "a claim": (CLAIM, HUB, {}, ["/models/source"]),
    "a claim with adapters": (ADAPTED, HUB, {}, ["/models/source", "/models/adapters/adapters", "/qwen-adapters"]),
    "an adapter of a hub": (
        {"adapters": [{"name": "support", "source": {"uri": "hf://team/support"}}]},
        CACHED,
        {},
        [f"/models/cached/{MODEL}", "/models/compiled", "/models/adapters/.fetched", "/qwen-adapters"],
    ),
    "an adapter of a hub without a cache": (
        CLAIM | {"adapters": [{"name": "support", "source": {"uri": "hf://team/support"}}]},
        HUB,
        {},
        ["/models/source", "/models/adapters/.fetched/" + FETCHED, "/qwen-adapters"],
    ),
    "a cache": ({}, CACHED, {}, [f"/models/cached/{MODEL}", "/models/compiled"]),
    "several GPUs": (CLAIM, HUB, {"shm_bytes": 1 << 30}, ["/models/source", "/dev/shm"]),
    "several nodes": (CLAIM, HUB, {"nodes_per_replica": 2}, ["/models/source", "/qwen-group"]),
}


def spec_of(spec: dict[str, Any], *paths: str) -> Spec:
    mounts = [{"name": "mine", "mountPath": path} for path in paths]
    pod = {"volumes": [{"name": "mine", "emptyDir": {}}], "volumeMounts": mounts}
    return parse({"metadata": {"name": "demo"}, "spec": {"model": MODEL, "pod": pod} | spec})


def verdict(spec: Spec, defaults: EngineDefaults, changes: dict[str, Any]) -> tuple[Plan, Plan | NoFit, list[str]]:
    """The plan, what became of it, and at which paths the operator mounts something in the engine."""
    assert FACTS is not None
    source = registry.engine_source(spec, FACTS, defaults)
    planned = plan(spec, FACTS, inventory([], [POOL]), defaults, source)
    assert isinstance(planned, Plan)
    planned = replace(planned, shm_bytes=0, **changes) if "shm_bytes" not in changes else replace(planned, **changes)
    identity = PodIdentity(Owner("demo", "team-a", "uid"), "0a1b2c3d")
    [engine] = engine_template(identity, spec, planned, source, RuntimeImage("i"))["spec"]["containers"]
    own = [mount["mountPath"] for mount in engine["volumeMounts"] if mount["name"] != "mine"]
    return planned, mountable(planned, spec, source, "team-a"), own


@pytest.mark.parametrize(("spec", "defaults", "changes", "more"), CASES.values(), ids=CASES.keys())
def test_every_path_of_the_operator_is_refused(
    spec: dict[str, Any], defaults: EngineDefaults, changes: dict[str, Any], more: list[str]
) -> None:
    planned, untouched, own = verdict(
        spec_of(spec, "/extra", "/home/qwen/.cache", "/models", "/tmpo"), defaults, changes
    )
    assert untouched == planned
    assert sorted(own) == sorted([*ALWAYS, *more])
    for path in own:
        for written in (path, f"{path}/", f"/{path}", f"/x/..{path}"):
            _, refused, _ = verdict(spec_of(spec, "/extra", written), defaults, changes)
            assert isinstance(refused, NoFit)
            assert refused.reason is Reason.INVALID_OVERRIDE
            assert refused.message.startswith(
                f"spec.pod.volumeMounts[1].mountPath: '{written}' is a path of the operator"
            )
            assert refused.message.endswith(f" at {path}; choose another path")


def test_nothing_is_mounted_over_the_runtime_itself() -> None:
    _, refused, _ = verdict(spec_of({}, "/qwen-runtime/qwen-runtime.pyz"), HUB, {})
    assert isinstance(refused, NoFit)


def test_a_path_that_the_operator_does_not_use_here_is_free() -> None:
    planned, kept, _ = verdict(spec_of(CLAIM, "/dev/shm", "/etc/qwen-ca", "/qwen-group"), HUB, {})
    assert kept == planned


async def test_a_user_reads_which_field_is_wrong() -> None:
    world = await World(replace(CONFIG, tenancy=Tenancy(mode=Mode.TRUSTED))).start()
    mine = {"volumes": [{"name": "mine", "emptyDir": {}}], "volumeMounts": [{"name": "mine", "mountPath": "/tmp"}]}
    world.api.put(QWENDEPLOYMENTS, deployment(pod=mine))
    await world.settle()
    assert world.api.all(PODS) == []
    assert world.conditions()["Stalled"] == ("True", "InvalidOverride")
    assert "spec.pod.volumeMounts[0].mountPath: '/tmp'" in world.qd()["status"]["summary"]["message"]
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(pod={}))
    await world.settle()
    assert len(world.api.all(PODS)) == 1
