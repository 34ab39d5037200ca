"""The container `engine`: its command, environment, mounts, resources and probes; and the volumes behind them. Pure."""

from __future__ import annotations

import math
from copy import deepcopy

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.manifests import model_cache, names
from qwen_operator.manifests.adapters import list_parts
from qwen_operator.manifests.group_pods import group_command, group_parts, group_seconds
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.pod_parts import CONTAINER_SECURITY, env_entry, literal
from qwen_operator.planning.types import EngineSource, Plan

RUNTIME_MOUNT = "/qwen-runtime"
RUNTIME = f"{RUNTIME_MOUNT}/qwen-runtime.pyz"
_HOME = "/home/qwen"
_PRESTOP_SECONDS = 5
_STARTUP_PERIOD = 5
# A start that takes longer than planned is not necessarily a hang.
_STARTUP_FACTOR = 2


def engine_container(spec: Spec, plan: Plan, source: EngineSource) -> Manifest:
    """The container that runs SGLang."""
    gpus = {plan.resource_name: str(plan.gpus_per_node)}
    resources = spec.pod.resources
    # As everywhere in Kubernetes, a limit without a request is also the request. The API server rejects a limit that is
    # below our request.
    host = {"cpu": f"{plan.cpu_millis}m", "memory": f"{plan.host_memory_bytes // 1024}Ki"}
    requests = {**host, **resources.limits, **resources.requests, **gpus}
    before, after = own_mounts(plan, source)
    mounts = [*before, *(dict(mount) for mount in spec.pod.volume_mounts), *after]
    group = group_parts(plan.nodes_per_replica)
    prestop = ["python3", RUNTIME, "prestop", "--seconds", str(_PRESTOP_SECONDS)]
    return {
        "name": names.ENGINE_CONTAINER,
        "image": plan.engine_image,
        "imagePullPolicy": "IfNotPresent",
        "command": _command(spec, plan, source),
        "env": [*(env_entry(variable) for variable in _environment(plan)), *group.env],
        "ports": [{"name": "http", "containerPort": names.ENGINE_PORT, "protocol": "TCP"}],
        "resources": {"requests": requests, "limits": {**resources.limits, **gpus}},
        "securityContext": deepcopy(CONTAINER_SECURITY),
        **_probes(plan, _group_seconds(plan, source)),
        "lifecycle": {"preStop": {"exec": {"command": prestop}}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def own_mounts(plan: Plan, source: EngineSource) -> tuple[list[Manifest], list[Manifest]]:
    """The operator's own mounts in the engine: those before and those after the user's."""
    nodes = plan.nodes_per_replica
    before: list[Manifest] = [
        {"name": "qwen-runtime", "mountPath": RUNTIME_MOUNT, "readOnly": True},
        {"name": "home", "mountPath": _HOME},
        {"name": "tmp", "mountPath": "/tmp"},
        *([{"name": "shm", "mountPath": "/dev/shm"}] if plan.shm_bytes else []),
        *(dict(mount) for mount in source.mounts),
    ]
    return before, [*group_parts(nodes).mounts, *list_parts(source.adapters, nodes).mounts]


def _command(spec: Spec, plan: Plan, source: EngineSource) -> list[str]:
    """The command. SGLang runs as a child of the runtime, because as process 1 it ignores SIGTERM while it loads."""
    group = group_command(plan.nodes_per_replica, _group_seconds(plan, source))
    hold = [f"--hold={lock}" for lock in model_cache.locks(source, plan.nodes_per_replica)]
    hold += [f"--compile-cache={model_cache.COMPILE_MOUNT}"] if model_cache.keeps_compiled(source) else []
    hold += list_parts(source.adapters, plan.nodes_per_replica).launch
    engine = [
        "python3",
        "-m",
        "sglang.launch_server",
        f"--model-path={source.model_path}",
        f"--served-model-name={spec.model}",
        "--host=0.0.0.0",
        f"--port={names.ENGINE_PORT}",
        *plan.args,
    ]
    return ["python3", RUNTIME, "launch", *hold, *group.launch, "--", *literal(engine), *group.engine]


def _environment(plan: Plan) -> tuple[EnvVar, ...]:
    # torch asks for the user's name, and the image's passwd file has no entry for the user id.
    base = {
        "HOME": _HOME,
        "USER": "qwen",
        "LOGNAME": "qwen",
        "HF_HOME": f"{_HOME}/huggingface",
        "SGLANG_CACHE_DIR": f"{_HOME}/sglang",
    }
    merged = {name: EnvVar(name, value) for name, value in base.items()}
    merged |= {variable.name: variable for variable in plan.env}
    return tuple(merged.values())


def _group_seconds(plan: Plan, source: EngineSource) -> int:
    fetched = plan.weight_bytes_per_rank * plan.gpus_per_replica if source.fetch else 0
    return group_seconds(plan.nodes_per_replica, fetched)


def _probes(plan: Plan, waits: int) -> Manifest:
    """/ready is a flag and answers at once. /health generates a token, so only it notices a hung scheduler.

    `waits`: how many seconds the engine may wait for the other pods of its replica.
    """
    ready = {"path": "/ready", "port": "http", "scheme": "HTTP"}
    health = {"path": "/health", "port": "http", "scheme": "HTTP"}
    attempts = math.ceil((plan.startup_seconds * _STARTUP_FACTOR + waits) / _STARTUP_PERIOD)
    return {
        "startupProbe": {
            "httpGet": ready,
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": 2,
            "failureThreshold": attempts,
        },
        "readinessProbe": {"httpGet": dict(ready), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {"httpGet": health, "periodSeconds": 60, "timeoutSeconds": 30, "failureThreshold": 5},
    }


def engine_volumes(spec: Spec, plan: Plan, source: EngineSource) -> list[Manifest]:
    """The volumes of its pod: the operator's own, those of the source and those of the user."""
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{plan.shm_bytes // 1024}Ki"}}
    return [
        {"name": "qwen-runtime", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        *([shm] if plan.shm_bytes else []),
        *(dict(volume) for volume in source.volumes),
        *(dict(volume) for volume in spec.pod.volumes),
        *group_parts(plan.nodes_per_replica).volumes,
        *list_parts(source.adapters, plan.nodes_per_replica).volumes,
    ]
