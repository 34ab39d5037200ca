"""The container that runs SGLang."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.manifests.made import CLAIM, engine_pod_of, only_container, plan_of, pod_of, spec_of, template_of


def test_sglang_runs_under_the_init_with_the_planned_options() -> None:
    container = only_container(engine_pod_of())
    command = container["command"]
    start = command.index("sglang.launch_server")
    assert command[: start + 1] == [
        "python3",
        "/qwen-runtime/qwen-runtime.pyz",
        "launch",
        "--",
        "python3",
        "-m",
        "sglang.launch_server",
    ]
    assert command[start + 1 : start + 6] == [
        "--model-path=Qwen/Qwen1.5-7B-Chat",
        "--served-model-name=Qwen/Qwen1.5-7B-Chat",
        "--host=0.0.0.0",
        "--port=8000",
        "--tp-size=1",
    ]
    assert container["image"] == "lmsysorg/sglang:v0.5.23"
    assert container["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["--seconds", "5"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "2Gi", "nvidia.com/gpu": "1"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["HOME"] == "/home/qwen"
    assert environment["HF_HOME"].startswith("/home/qwen/")
    assert environment["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "false"


def test_variables_of_the_user_replace_the_operators() -> None:
    env = [{"name": "HOME", "value": "/x"}, {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    variables = only_container(engine_pod_of(engine={"env": env}))["env"]
    assert [one for one in variables if one["name"] in ("HOME", "T")] == env


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "the model itself": ({}, "Qwen/Qwen1.5-7B-Chat"),
    "another repository": ({"source": {"uri": "hf://org/copy"}}, "org/copy"),
    "a folder of a claim": (CLAIM, "/models/source/qwen/7b"),
    "a whole claim": ({"source": {"uri": "pvc://models"}}, "/models/source"),
}


@pytest.mark.parametrize(("spec", "path"), MODELS.values(), ids=MODELS.keys())
def test_where_the_model_is(spec: dict[str, Any], path: str) -> None:
    pod = engine_pod_of(**spec)
    assert f"--model-path={path}" in only_container(pod)["command"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if volume["name"] == "source"]
    mounts = [mount for mount in only_container(pod)["volumeMounts"] if mount["name"] == "source"]
    assert claims == ([{"claimName": "models", "readOnly": True}] if path.startswith("/") else [])
    assert all(mount["readOnly"] for mount in mounts)
    assert len(mounts) == len(claims)


def test_probes_follow_from_the_start_up_budget() -> None:
    spec = spec_of(engine={"startupSeconds": 99})
    container = only_container(template_of(spec))
    startup, ready, live = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    assert startup["failureThreshold"] * startup["periodSeconds"] == 200
    assert [probe["httpGet"]["path"] for probe in (startup, ready, live)] == ["/ready", "/ready", "/health"]
    assert live["timeoutSeconds"] > 20, "SGLang itself waits up to 20 s in /health"


def test_shared_memory_has_the_planned_size() -> None:
    spec = spec_of()
    template = template_of(spec, replace(plan_of(spec), shm_bytes=3 << 30))
    (shm,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}


def test_a_share_of_a_gpu_is_requested_by_its_name_and_mps_brings_its_own_shm() -> None:
    spec = spec_of()
    shared = replace(plan_of(spec), resource_name="nvidia.com/gpu.shared", share="MPS", shm_bytes=0)
    pod = template_of(spec, shared)["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu.shared": "1"}
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert "shm" not in {one["name"] for one in (*pod["volumes"], *container["volumeMounts"])}


def test_requests_and_shared_memory_follow_the_number_of_gpus() -> None:
    spec = spec_of(parallelism={"tensor": 4})
    pod = pod_of("0a1b2c3d", template_of(spec), 0, 600)
    assert only_container(pod)["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "4"},
        "limits": {"nvidia.com/gpu": "4"},
    }
    (shm,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
