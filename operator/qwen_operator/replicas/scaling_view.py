"""Makes the input of the scaling loop from a deployment and its replicas. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime

from qwen_operator import objects, untrusted
from qwen_operator.api.conditions import MESSAGE_LIMIT, ConditionType, Reason
from qwen_operator.api.objective import Objective
from qwen_operator.manifests.names import ENGINE_CONTAINER, Manifest
from qwen_operator.objects import ObjectKey
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.wanted import Decider, last_wanted, written_size_rule
from qwen_operator.scaling.load import LoadClass
from qwen_operator.scaling.types import Attained, EnginePod, ScaledDeployment, ScalingState

_LIMIT_OPTION = "--max-running-requests"
_NAME_OPTION = "--served-model-name"
_STAGES_OPTION = "--pp-size"
_LARGEST_LIMIT = 999_999_999
_MOST_STAGES = 64
_LONGEST_START = 86_400


def scaled_deployments(
    deployments: Iterable[Manifest],
    replicas: Callable[[Manifest], Iterable[Replica]],
    names: Callable[[ObjectKey], tuple[str, ...]] = lambda _key: (),
    skipped: Callable[[ObjectKey, Exception], None] = lambda _key, _error: None,
    now: datetime | None = None,
) -> Iterator[ScaledDeployment]:
    """All QwenDeployments that are not being deleted. `replicas` and `names` return those of one.

    `now` is timezone-aware; without it, schedules do not count.
    If one cannot be read, it is left out and `skipped` gets its key and the error. The others scale on.
    """
    for deployment in deployments:
        if objects.is_deleting(deployment):
            continue
        try:
            scaled = scaled_deployment(deployment, replicas(deployment), names, now)
        except Exception as error:
            skipped(objects.key_of(deployment), error)
            continue
        yield scaled


def scaled_deployment(
    deployment: Manifest,
    replicas: Iterable[Replica],
    names: Callable[[ObjectKey], tuple[str, ...]] = lambda _key: (),
    now: datetime | None = None,
) -> ScaledDeployment:
    """The deployment with the leaders of its replicas, without replicas that are being deleted or have ended."""
    meta = deployment["metadata"]
    rule = written_size_rule(deployment, now)
    key = objects.key_of(deployment)
    return ScaledDeployment(
        key=key,
        uid=meta["uid"],
        engines=tuple(
            _engine(replica, rule.objective) for replica in replicas if not replica.deleting and not replica.broken
        ),
        bounds=None if rule.bounds is None else replace(rule.bounds, start_seconds=_start_seconds(deployment)),
        advises=rule.decider is not Decider.LOAD,
        shown=shown(deployment),
        size=last_wanted(deployment),
        policy=rule.policy,
        names=names(key),
        objective=rule.objective,
    )


def _start_seconds(deployment: Manifest) -> int:
    """What a start of the present plan took, as the engines reported it, or else as planned; 0 without a plan."""
    plan, seen = (objects.mapping(deployment, "status", part) for part in ("plan", "observed"))
    planned = untrusted.whole(plan.get("startupSeconds"), 0, _LONGEST_START, 0)
    if seen.get("hash") != plan.get("hash"):
        return planned
    return untrusted.whole(seen.get("startupSeconds"), 1, _LONGEST_START, planned)


def shown(deployment: Manifest) -> ScalingState | None:
    """The scaling state in the status; None if the status has none, or has values that this version does not know.

    `wanted` is None if the load did not decide.
    """
    status = objects.mapping(deployment, "status")
    scaling = objects.mapping(status, "scaling")
    try:
        reason, load = (
            Reason(str(scaling.get("reason"))),
            LoadClass(str(objects.mapping(status, "summary").get("load"))),
        )
    except ValueError:
        return None
    by_load = reason not in (Reason.REPLICAS_SET, Reason.NOT_CONFIGURED, Reason.SUSPENDED, Reason.ADVISORY)
    return ScalingState(
        wanted=last_wanted(deployment) if by_load else None,
        reason=reason,
        message=untrusted.clean(scaling.get("message"), MESSAGE_LIMIT),
        active=objects.holds(deployment, ConditionType.SCALING_ACTIVE),
        load=load,
        attained=_attained(objects.mapping(scaling, "attainmentPercent")),
    )


def _attained(percent: objects.Object) -> Attained:
    hour, day = (untrusted.whole(percent.get(name), 0, 100, -1) for name in ("hour", "day"))
    return Attained(None if hour < 0 else hour, None if day < 0 else day)


def _engine(replica: Replica, objective: Objective) -> EnginePod:
    leader = replica.leader
    command = _command(leader.manifest)
    return EnginePod(
        pod=leader.name,
        uid=leader.uid,
        address=leader.address,
        ready=replica.up and bool(leader.address),
        draining=replica.draining,
        cordoned=leader.cordoned_since is not None,
        limit=untrusted.digits(_option(command, _LIMIT_OPTION), _LARGEST_LIMIT, 0),
        stages=max(1, untrusted.digits(_option(command, _STAGES_OPTION), _MOST_STAGES, 1)),
        model=_option(command, _NAME_OPTION),
        replica=replica.name,
        objective=objective,
    )


def _command(pod: Manifest) -> list[str]:
    engine = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    lists = [engine.get("command"), engine.get("args")]
    return [part for parts in lists if isinstance(parts, list) for part in parts if isinstance(part, str)]


def _option(command: list[str], name: str) -> str:
    """The last value of an option, written as `--name=value` or `--name value`; "" if it is absent."""
    value = ""
    for index, argument in enumerate(command):
        if argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
        elif argument == name:
            value = next(iter(command[index + 1 : index + 2]), "")
    return value
