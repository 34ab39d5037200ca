"""From manifests to the fleets that the scaling loop looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qwen_operator.api import reading
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.api.schema import object_schema
from qwen_operator.api.spec import Scaling
from qwen_operator.manifests.names import (
    ANNOTATION_CORDONED_SINCE,
    ANNOTATION_DRAINING_SINCE,
    ANNOTATION_OWNER_UID,
    ENGINE_CONTAINER,
    LABEL_ROLE,
    ROLE_ENGINE,
    Manifest,
)
from qwen_operator.scaling.load import Load
from qwen_operator.scaling.types import Bounds, Engine, Fleet, ScalingState

_LIMIT_OPTION = "--max-running-requests"
_NAME_OPTION = "--served-model-name"


def fleets(deployments: Iterable[Manifest], related: Callable[[Manifest], Iterable[Manifest]]) -> Iterator[Fleet]:
    """The fleet of every QwenDeployment that is not being deleted; `related` gives the pods that name it."""
    for deployment in deployments:
        if "deletionTimestamp" not in deployment["metadata"]:
            yield fleet(deployment, related(deployment))


def fleet(deployment: Manifest, pods: Iterable[Manifest]) -> Fleet:
    """The engine pods of ours that are neither being deleted nor at their end, in order of names."""
    meta = deployment["metadata"]
    engines = [_engine(pod) for pod in pods if _counts(pod, meta["uid"])]
    return Fleet(
        key=(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        engines=tuple(sorted(engines, key=lambda engine: engine.pod)),
        bounds=bounds(deployment.get("spec") or {}),
        shown=shown(deployment),
        size=size(deployment),
    )


def size(deployment: Manifest) -> int | None:
    """The number of replicas that the status says were wanted, whoever decided it; None where it says none."""
    wanted = ((deployment.get("status") or {}).get("scaling") or {}).get("wanted")
    return wanted if isinstance(wanted, int) else None


def shown(deployment: Manifest) -> ScalingState | None:
    """What the status says of load and scaling; None where it says nothing, or in words that are not ours.

    `wanted` is None where the load did not decide.
    """
    status = deployment.get("status") or {}
    report, summary = status.get("scaling") or {}, status.get("summary") or {}
    try:
        reason, load = Reason(str(report.get("reason"))), Load(str(summary.get("load")))
    except ValueError:
        return None
    conditions = {one.get("type"): one.get("status") for one in status.get("conditions") or ()}
    wanted = size(deployment)
    by_load = wanted is not None and reason not in (Reason.REPLICAS_SET, Reason.NOT_CONFIGURED)
    return ScalingState(
        wanted=wanted if by_load else None,
        reason=reason,
        message=str(report.get("message", "")),
        active=conditions.get(ConditionType.SCALING_ACTIVE) == "True",
        load=load,
    )


def bounds(spec: Mapping[str, Any]) -> Bounds | None:
    """The bounds of spec.scaling; None where it is absent or invalid, or where spec.replicas decides."""
    scaling = spec.get("scaling")
    if spec.get("replicas") is not None or scaling is None:
        return None
    if reading.problems(scaling, object_schema(Scaling), "spec.scaling"):
        return None
    found = reading.build(Scaling, scaling)
    return Bounds(found.min_replicas, found.max_replicas, float(found.stabilization_seconds))


def _counts(pod: Manifest, owner: str) -> bool:
    meta = pod["metadata"]
    return (
        (meta.get("labels") or {}).get(LABEL_ROLE) == ROLE_ENGINE
        and (meta.get("annotations") or {}).get(ANNOTATION_OWNER_UID) == owner
        and "deletionTimestamp" not in meta
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    )


def _engine(pod: Manifest) -> Engine:
    meta, status = pod["metadata"], pod.get("status") or {}
    annotations = meta.get("annotations") or {}
    address = status.get("podIP") or ""
    conditions = status.get("conditions") or ()
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    command = _command(pod)
    limit = _option(command, _LIMIT_OPTION)
    return Engine(
        pod=meta["name"],
        uid=meta["uid"],
        address=address,
        ready=ready and bool(address),
        draining=ANNOTATION_DRAINING_SINCE in annotations,
        cordoned=ANNOTATION_CORDONED_SINCE in annotations,
        limit=int(limit) if limit.isdecimal() else 0,
        model=_option(command, _NAME_OPTION),
    )


def _command(pod: Manifest) -> list[str]:
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") == ENGINE_CONTAINER:
            return [*(container.get("command") or ()), *(container.get("args") or ())]
    return []


def _option(command: list[str], name: str) -> str:
    """The last value of an option, as --name=value or as two words; "" where it is absent."""
    value = ""
    for index, word in enumerate(command):
        if word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
        elif word == name:
            value = next(iter(command[index + 1 : index + 2]), "")
    return value
