"""Adapters from the spec to the pod and the status: read before an engine starts, and pinned with the revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_operator.api.spec import InvalidSpec, parse
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.runtime.adapter_files import adapter
from tests.unit.runtime.checkpoint import checkpoint
from tests.unit.world import World, change, deployment

PVC = {"uri": "pvc://models/base"}


def listed(*names: str, claim: str = "models") -> list[dict[str, Any]]:
    return [{"name": name, "source": {"uri": f"pvc://{claim}/adapters/{name}"}} for name in names]


def report(path: Path, *names: str, base: bool = True, **more: Any) -> Manifest:
    folders = [(name, adapter(path / name, **more)) for name in names]
    found, _ = examine(checkpoint(path / "base") if base else None, folders)
    return found


async def serving(path: Path, *names: str, source: dict[str, Any] | None = PVC, **more: Any) -> World:
    world = await World().start()
    world.kubelet.report = report(path, *names, base=source is not None, **more)
    own = {"model": "local", "source": source} if source else {"model": "Qwen/Qwen1.5-0.5B-Chat"}
    world.api.put(QWENDEPLOYMENTS, deployment(**own, adapters=listed(*names)))
    await world.settle(60)
    return world


def engines(world: World) -> list[Manifest]:
    return [pod for pod in world.api.all(PODS) if not pod["metadata"]["name"].endswith("-inspect")]


def inspections(world: World) -> list[Manifest]:
    made = (pod for _, resource, pod in world.api.journal if resource is PODS)
    names = {pod["metadata"]["name"]: pod for pod in made if pod["metadata"]["name"].endswith("-inspect")}
    return list(names.values())


async def test_adapters_are_read_mounted_and_loaded(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support", "legal")
    assert world.conditions()["Ready"] == ("True", "Serving")
    (engine,) = engines(world)
    command = engine["spec"]["containers"][0]["command"]
    paths = [f"{name}=/models/adapters/models/adapters/{name}" for name in ("legal", "support")]
    assert command[command.index("--lora-paths") + 1 :][:2] == paths
    assert engine["metadata"]["annotations"]["qwen-operator.dev/adapters"] == "legal,support"
    mounts = {mount["mountPath"]: mount for mount in engine["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["/models/adapters/models"] == {
        "name": "adapters-0",
        "mountPath": "/models/adapters/models",
        "readOnly": True,
    }
    (inspection,) = inspections(world)
    assert inspection["spec"]["containers"][0]["command"][-2:] == [f"--adapter={path}" for path in paths]
    assert [volume["name"] for volume in inspection["spec"]["volumes"]] == ["source", "adapters-0"]
    assert world.qd()["status"]["adapters"] == {"ready": 2, "total": 2}


async def test_a_model_of_the_catalog_has_its_adapters_read_by_a_pod(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support", source=None, modules=("q_proj", "o_proj"))
    assert world.conditions()["Ready"] == ("True", "Serving"), world.message("Ready")
    (inspection,) = inspections(world)
    command = inspection["spec"]["containers"][0]["command"]
    assert command[-2:] == ["inspect", "--adapter=support=/models/adapters/models/adapters/support"]
    assert world.qd()["status"]["model"]["factsFrom"] == "Catalog"


async def test_without_room_an_added_adapter_starts_a_revision_and_the_earlier_one_serves_on(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    (before,) = engines(world)
    world.kubelet.report = report(tmp_path, "support", "legal", rank=64)
    change(world, adapters=listed("support", "legal"))
    await world.settle(900)
    shown = [
        item["status"]["adapters"]
        for _, resource, item in world.api.journal
        if resource is QWENDEPLOYMENTS and item.get("status", {}).get("adapters", {}).get("waiting")
    ]
    assert {str(one["ready"]) + "/" + str(one["total"]) for one in shown} >= {"1/2"}
    assert {one["name"]: one["reason"] for entry in shown for one in entry["waiting"]}["legal"] == "Replacing"
    (after,) = engines(world)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert world.qd()["status"]["adapters"] == {"ready": 2, "total": 2}
    messages = [
        one["message"]
        for _, resource, item in world.api.journal
        if resource is QWENDEPLOYMENTS
        for one in item.get("status", {}).get("conditions", ())
        if (one["type"], one["reason"]) == ("Reconciling", "Replacing")
    ]
    why = "new replicas come because spec.adapters[legal] has the rank 64, and they have room for 8"
    assert f"the operator replaces pods of an earlier revision; {why}" in messages


async def test_an_adapter_of_another_base_is_named_and_the_earlier_revision_serves_on(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    broken = report(tmp_path, "support", "legal")
    # The report has them by name.
    broken["adapters"][0][3] = 4096
    world.kubelet.report = broken
    change(world, adapters=listed("support", "legal"))
    await world.settle(60)
    assert world.conditions()["Ready"][0] == "True"
    assert world.conditions()["Stalled"] == ("True", "AdapterMismatch")
    assert "spec.adapters[legal] pvc://models/adapters/legal: it is for a base model" in world.message("Stalled")
    waiting = [{"name": "legal", "reason": "AdapterMismatch"}]
    assert world.qd()["status"]["adapters"] == {"ready": 1, "total": 2, "waiting": waiting}


async def test_a_fault_of_the_files_is_told_with_the_path_that_the_user_wrote(tmp_path: Path) -> None:
    world = await World().start()
    found = report(tmp_path, "support", use_dora=True)
    message = found["error"]["message"].replace(str(tmp_path), "/models/adapters/models/adapters")
    world.kubelet.report = found | {"error": found["error"] | {"message": message}}
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=listed("support")))
    await world.settle(20)
    assert world.conditions()["Ready"] == ("False", "AdapterMismatch")
    assert "spec.adapters[support] in pvc://models/adapters/support: " in world.message("Ready")
    assert not engines(world)


REMOTE = [
    {"name": "legal", "source": {"uri": "hf://team/legal", "revision": "v2", "secretRef": {"name": "hf-token"}}},
    {"name": "support", "source": {"uri": "s3://weights/support"}},
]


async def test_adapters_of_hubs_and_buckets_are_read_pinned_and_fetched(tmp_path: Path) -> None:
    world = await World().start()
    commits = ["a" * 40, "", "b" * 40]
    world.kubelet.report = report(tmp_path, "legal", "local", "support") | {"adapterCommits": commits}
    adapters = [*REMOTE, *listed("local")]
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=adapters))
    await world.settle(60)
    assert world.conditions()["Ready"] == ("True", "Serving"), world.message("Ready")
    (inspection,) = inspections(world)
    (reader,) = inspection["spec"]["containers"]
    assert reader["command"] == [
        "qwen-operator",
        "inspect-adapters",
        "--path=/models/source/base",
        "--adapter=local=/models/adapters/models/adapters/local",
        "--remote=legal --hub=hf --repository=team/legal --commit=v2",
        "--remote=support --s3=s3://weights/support --commit=",
    ]
    assert [one["name"] for one in reader["env"]] == ["ADAPTER_0_QWEN_HUB_TOKEN"]

    (engine,) = engines(world)
    _, fetch = engine["spec"]["initContainers"]
    assert fetch["command"][2:4] == [
        f"--adapter=--hub=hf --repository=team/legal --commit={commits[0]}",
        f"--adapter=--s3=s3://weights/support --commit={commits[2]}",
    ]
    assert fetch["env"] == [
        {
            "name": "ADAPTER_0_QWEN_HUB_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}},
        }
    ]
    container = engine["spec"]["containers"][0]
    assert "secretKeyRef" not in str(container)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    paths = [path for path in mounts if path.startswith("/models/adapters/.fetched/")]
    assert [mounts[path]["readOnly"] for path in paths] == [True, True]
    command = container["command"]
    loaded = command[command.index("--lora-paths") + 1 :][:3]
    assert loaded == [f"legal={paths[0]}", "local=/models/adapters/models/adapters/local", f"support={paths[1]}"]
    assert [f"--hold={path}/.in-use" in command for path in paths] == [True, True]
    assert world.qd()["status"]["adapters"] == {"ready": 3, "total": 3}

    await world.restart()
    await world.settle(60)
    assert len(inspections(world)) == 1
    assert engines(world)[0]["metadata"]["uid"] == engine["metadata"]["uid"]


async def test_a_report_on_other_adapters_is_no_fact(tmp_path: Path) -> None:
    world = await World().start()
    world.kubelet.report = report(tmp_path, "support")
    world.api.put(QWENDEPLOYMENTS, deployment(model="local", source=PVC, adapters=listed("support", "legal")))
    await world.settle(20)
    assert world.conditions()["Ready"] == ("False", "InvalidConfig")


async def test_another_order_is_no_change(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support", "legal")
    before = [pod["metadata"]["uid"] for pod in engines(world)]
    change(world, adapters=listed("legal", "support"))
    await world.settle(60)
    assert [pod["metadata"]["uid"] for pod in engines(world)] == before
    assert world.conditions()["Planned"] == ("True", "Fits")


async def test_replicas_that_are_added_or_replaced_have_the_same_adapters(tmp_path: Path) -> None:
    world = await serving(tmp_path, "support")
    change(world, replicas=3)
    await world.settle(60)
    world.api.remove(engines(world)[0], PODS)
    await world.restart()
    await world.settle(60)
    assert [pod["metadata"]["annotations"]["qwen-operator.dev/adapters"] for pod in engines(world)] == ["support"] * 3


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "a colon": ({"adapters": [{"name": "a:b", "source": PVC}]}, "spec.adapters[0].name"),
    "two of a name": ({"adapters": [{"name": "a", "source": PVC}] * 2}, "spec.adapters"),
    "too many": ({"adapters": listed(*(f"a{number}" for number in range(17)))}, "at most 16"),
    "no such scheme": (
        {"adapters": [{"name": "a", "source": {"uri": "oci://team/lora"}}]},
        "must begin with pvc://, hf://, modelscope:// or s3://; right would be",
    ),
    "a revision of a claim": (
        {"adapters": [{"name": "a", "source": {**PVC, "revision": "main"}}]},
        "spec.adapters[0].source: revision is 'main': revision is for repositories of a hub",
    ),
    "a branch of a bucket": (
        {"adapters": [{"name": "a", "source": {"uri": "s3://weights/a", "revision": "main"}}]},
        "revision of s3:// is the 40 hexadecimal digits",
    ),
    "a token for a claim": (
        {"adapters": [{"name": "a", "source": {**PVC, "secretRef": {"name": "t"}}}]},
        "secretRef is for repositories of a hub",
    ),
    "a way out": ({"adapters": [{"name": "a", "source": {"uri": "pvc://models/../x"}}]}, "must have the form"),
    "a private model": (
        {"source": {"uri": "hf://a/b", "secretRef": {"name": "t"}}, "adapters": listed("a")},
        "adapters do not go together with source.secretRef",
    ),
    "a bucket": ({"source": {"uri": "s3://weights/chat"}, "adapters": listed("a")}, "a source in a bucket"),
    "a GGUF file": ({"source": {**PVC, "file": "a.gguf"}, "adapters": listed("a")}, "source.file"),
    "a volume of theirs": (
        {"adapters": listed("a"), "pod": {"volumes": [{"name": "adapters-0", "emptyDir": {}}]}},
        "spec.pod.volumes[0].name: 'adapters-0' is the volume of an adapter",
    ),
}


@pytest.mark.parametrize(("spec", "sentence"), INVALID.values(), ids=INVALID.keys())
def test_what_is_wrong_is_named_with_its_field(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse(deployment(**spec))
    assert sentence in str(refused.value)


def test_a_volume_of_this_name_is_free_without_adapters() -> None:
    assert parse(deployment(pod={"volumes": [{"name": "adapters-0", "emptyDir": {}}]})).adapters == ()
