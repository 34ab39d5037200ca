"""The cache in engine pods: who mounts what, and what a pod without a cache does not have."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from qwen_operator.actions.refusals import explain
from qwen_operator.actions.types import Kind, Refusal
from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import parse
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.fetch.bucket import Bucket
from qwen_operator.hardware.inventory import inventory
from qwen_operator.manifests import model_cache
from qwen_operator.manifests.engine_pods import engine_template
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import CacheType, ModelCache, Plan
from qwen_operator.replicas.quotas import usage
from qwen_operator.sources import registry
from tests.unit.manifests.made import DEFAULTS, FACTS, IDENTITY, POOL, RUNTIME

COMMIT = "c" * 40
MODEL = "Qwen/Qwen1.5-7B-Chat"
NODE = ModelCache(CacheType.HOST_PATH, "/var/lib/models", 300)
CLAIM = ModelCache(CacheType.CLAIM, "models", 200)
VOLUMES = ("qwen-model-cache", "qwen-engine-cache")
FOLDER = f"models/hf/Qwen--Qwen1.5-7B-Chat/{COMMIT}"


def template(cache: ModelCache | None, nodes: int = 1, **source: Any) -> dict[str, Any]:
    spec = parse(
        {
            "metadata": {"name": "demo"},
            "spec": {"model": MODEL, **{key: value for key, value in source.items() if value}},
        }
    )
    assert FACTS is not None
    facts: Checkpoint = replace(FACTS, commit=COMMIT) if cache or source else FACTS
    defaults = replace(DEFAULTS, cache=cache)
    where = registry.engine_source(spec, facts, defaults)
    planned = plan(spec, facts, inventory([], [POOL]), defaults, where)
    assert isinstance(planned, Plan)
    return engine_template(IDENTITY, spec, replace(planned, nodes_per_replica=nodes), where, RUNTIME)


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])}


def mount(container: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in container["volumeMounts"] if one["name"] in VOLUMES)


def test_the_engine_sees_only_its_model_and_writes_nothing() -> None:
    pod = template(NODE)
    assert mount(containers(pod)["engine"]) == {
        "name": "qwen-engine-cache",
        "mountPath": f"/models/cached/{MODEL}",
        "subPath": FOLDER,
        "readOnly": True,
    }
    assert mount(containers(pod)["fetch"]) == {"name": "qwen-model-cache", "mountPath": "/cache", "subPath": "team-a"}
    assert pod["spec"]["volumes"][-2:] == [
        {"name": "qwen-model-cache", "hostPath": {"path": "/var/lib/models", "type": "DirectoryOrCreate"}},
        {"name": "qwen-engine-cache", "hostPath": {"path": "/var/lib/models/team-a", "type": ""}},
    ]


def test_a_link_in_the_folder_of_a_namespace_leads_an_engine_to_no_other_one() -> None:
    """The kubelet resolves it, and refuses a subPath that ends outside its volume."""
    pod = template(replace(NODE, compile=True))
    roots = {one["name"]: one["hostPath"]["path"] for one in pod["spec"]["volumes"] if "hostPath" in one}
    for one in containers(pod)["engine"]["volumeMounts"]:
        if one["name"] in roots:
            assert roots[one["name"]] == "/var/lib/models/team-a"


def test_a_claim_may_have_other_files() -> None:
    pod = template(CLAIM)
    assert mount(containers(pod)["engine"])["subPath"] == f"qwen-models/{FOLDER}"
    assert "--cache=/cache/qwen-models" in containers(pod)["fetch"]["command"]
    assert pod["spec"]["volumes"][-1]["persistentVolumeClaim"] == {"claimName": "models"}


def test_a_gguf_file_has_a_folder_of_its_own() -> None:
    file = {"uri": f"hf://{MODEL}", "file": "q4/a.gguf"}
    one, other, whole = (template(NODE, source=source) for source in (file, file | {"file": "b.gguf"}, None))
    engine = containers(one)["engine"]
    assert f"--model-path=/models/cached/{MODEL}/q4/a.gguf" in engine["command"]
    assert f"--hold=/models/cached/{MODEL}/.in-use" in engine["command"]
    assert "--file=q4/a.gguf" in containers(one)["fetch"]["command"]
    assert mount(engine)["mountPath"] == f"/models/cached/{MODEL}"
    folders = {mount(containers(pod)["engine"])["subPath"] for pod in (one, other, whole)}
    assert len(folders) == 3
    assert all(folder.startswith(FOLDER) for folder in folders)


def test_the_engine_gets_the_joined_file_of_a_split_one() -> None:
    pod = template(NODE, source={"uri": f"hf://{MODEL}", "file": "q4/a-00001-of-00003.gguf"})
    engine = containers(pod)["engine"]
    assert f"--model-path=/models/cached/{MODEL}/q4/a.gguf" in engine["command"]
    assert f"--hold=/models/cached/{MODEL}/.in-use" in engine["command"]
    assert mount(engine)["mountPath"] == f"/models/cached/{MODEL}"
    assert "--file=q4/a-00001-of-00003.gguf" in containers(pod)["fetch"]["command"]


def test_a_file_of_a_bucket_needs_no_cache() -> None:
    pod = template(None, source={"uri": "s3://weights/qwen", "file": "q4/a-00001-of-00003.gguf"})
    engine, fetch = containers(pod)["engine"], containers(pod)["fetch"]
    assert "--model-path=/models/cached/weights/qwen/q4/a.gguf" in engine["command"]
    assert {"--s3=s3://weights/qwen", "--file=q4/a-00001-of-00003.gguf", "--of-pod"} <= set(fetch["command"])
    bucket = Bucket("weights", "qwen", commit=COMMIT, file="q4/a-00001-of-00003.gguf")
    assert mount(engine)["subPath"] == f"qwen-models/models/{bucket.folder}"
    assert mount(engine)["mountPath"] == "/models/cached/weights/qwen"


def test_what_engines_compile_is_kept_by_image_and_gpu_and_only_if_asked_for() -> None:
    plain, keeping = template(NODE), template(replace(NODE, compile=True))
    engine = containers(keeping)["engine"]
    [model, compiled] = [one for one in engine["volumeMounts"] if one["name"] in VOLUMES]
    assert (model["readOnly"], "readOnly" in compiled, compiled["mountPath"]) == (True, False, "/models/compiled")
    folder = compiled["subPath"]
    assert re.fullmatch(r"compile/0\.5\.23-[0-9a-f]{8}-[A-Za-z0-9._-]+", folder)
    assert f"--compile-folder={folder}" in containers(keeping)["fetch"]["command"]
    assert "--compile-cache=/models/compiled" in engine["command"]
    assert "compile" not in json.dumps(plain)


def test_a_folder_of_the_spec_wins_over_that_for_compiled_code() -> None:
    own = [{"name": "SGLANG_CACHE_DIR", "value": "/mine"}]
    pod = template(replace(NODE, compile=True), engine={"env": own})
    assert "compile" not in json.dumps(pod)


def test_the_command_of_the_fetch() -> None:
    fetch = containers(template(NODE, source={"uri": "hf://Qwen/Qwen1.5-7B-Chat", "secretRef": {"name": "hf"}}))[
        "fetch"
    ]
    assert fetch["command"] == [
        "qwen-operator",
        "fetch",
        "--hub=hf",
        "--repository=Qwen/Qwen1.5-7B-Chat",
        f"--commit={COMMIT}",
        "--cache=/cache",
        "--size-gib=300",
        "--kept-free-percent=15",
        "--port=8000",
    ]
    assert fetch["env"] == [{"name": "QWEN_HUB_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}]
    assert fetch["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_pod_needs_no_more_of_a_node_than_without_the_cache() -> None:
    needs, before = usage(template(NODE)), usage(template(None))
    assert before["requests.cpu"] == Decimal("0.5"), "one GPU, the smallest engine"
    assert {name: value for name, value in needs.items() if not name.startswith("limits")} == {
        name: value for name, value in before.items() if not name.startswith("limits")
    }


def test_the_token_is_not_in_the_engine() -> None:
    pod = template(NODE, source={"uri": "hf://Qwen/Qwen1.5-7B-Chat", "secretRef": {"name": "hf"}})
    assert [name for name, one in containers(pod).items() if "secretKeyRef" in str(one)] == ["fetch"]


def test_the_engine_holds_its_model_while_it_runs() -> None:
    command = containers(template(NODE))["engine"]["command"]
    assert command[2:5] == ["launch", f"--hold=/models/cached/{MODEL}/.in-use", "--"]
    assert f"--model-path=/models/cached/{MODEL}" in command
    assert not any(word.startswith("--revision") for word in command)
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in containers(template(NODE))["engine"]["env"]


@pytest.mark.parametrize(("cache", "least"), [(None, 1200), (NODE, 1200 + 15 * 10**9 // 50_000_000)])
def test_the_pods_of_a_replica_wait_for_the_one_that_downloads(cache: ModelCache | None, least: int) -> None:
    engine = containers(template(cache, nodes=2))["engine"]
    (seconds,) = (int(word.split("=")[1]) for word in engine["command"] if word.startswith("--group-seconds="))
    assert least <= seconds <= least * 1.1
    assert engine["startupProbe"]["failureThreshold"] * engine["startupProbe"]["periodSeconds"] > seconds


@pytest.mark.parametrize("source", [{}, {"source": {"uri": "pvc://claim/path"}}])
def test_without_a_cache_or_a_hub_nothing_of_it_is_in_a_pod(source: dict[str, Any]) -> None:
    pod = template(None if not source else NODE, **source)
    assert set(containers(pod)) == {"runtime", "engine"}
    assert "cache" not in str([volume["name"] for volume in pod["spec"]["volumes"]])
    assert "--hold" not in str(containers(pod)["engine"]["command"])


def test_what_pod_security_refuses_says_whose_decision_it_is() -> None:
    words = (
        'pods "a" is forbidden: violates PodSecurity "baseline:latest": hostPath volumes (volume "qwen-model-cache")'
    )
    reason, message = explain(Refusal(Kind.POD, "a", words))
    assert reason is Reason.POD_REFUSED
    assert "set cache.type to PersistentVolumeClaim or None" in message


def test_an_engine_that_loads_a_second_model_may_ask_the_hub() -> None:
    env = containers(template(NODE, engine={"env": [{"name": "HF_HUB_OFFLINE", "value": "0"}]}))["engine"]["env"]
    assert [one for one in env if one["name"] == "HF_HUB_OFFLINE"] == [{"name": "HF_HUB_OFFLINE", "value": "0"}]


def test_without_a_cache_the_files_of_a_bucket_are_in_the_pod() -> None:
    pod = template(None, source={"uri": "s3://weights/chat", "secretRef": {"name": "s3"}})
    found, fetch = pod["spec"]["volumes"][-1], containers(pod)["fetch"]
    size = found["emptyDir"]["sizeLimit"]
    assert found == {"name": "qwen-model-cache", "emptyDir": {"sizeLimit": size}}
    assert fetch["resources"]["requests"]["ephemeral-storage"] == size
    assert fetch["command"] == [
        "qwen-operator",
        "fetch",
        "--s3=s3://weights/chat",
        f"--commit={COMMIT}",
        "--cache=/cache/qwen-models",
        f"--size-gib={size.removesuffix('Gi')}",
        "--kept-free-percent=15",
        "--of-pod",
        "--port=8000",
    ]
    assert mount(containers(pod)["engine"])["subPath"] == f"qwen-models/models/{store_folder()}"
    assert [name for name, one in containers(pod).items() if "secretKeyRef" in str(one)] == ["fetch"]


@pytest.mark.parametrize(
    "location", ["weights", "weights/", "weights/a/b/", "weights//a", "weights/a//b/", "weights//"]
)
def test_both_sides_name_the_folder_of_a_bucket_alike(location: str) -> None:
    mounted = model_cache.model_folder("s3", model_cache.bucket_folder(location), COMMIT)
    assert Bucket.of_uri(f"s3://{location}", "", COMMIT).folder == mounted


def store_folder() -> str:
    """The folder that the program itself uses."""
    return Bucket.of_uri("s3://weights/chat", "", COMMIT).folder
