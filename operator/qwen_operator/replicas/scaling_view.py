"""From a deployment and its replicas to what the scaling loop looks at. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from qwen_operator import objects
from qwen_operator.api.conditions import ConditionType, Reason
from qwen_operator.manifests.names import ENGINE_CONTAINER, Manifest
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.wanted import last_wanted, written_size_rule
from qwen_operator.scaling.load import LoadClass
from qwen_operator.scaling.types import EnginePod, ScaledDeployment, ScalingState

_LIMIT_OPTION = "--max-running-requests"
_NAME_OPTION = "--served-model-name"
_MOST_DIGITS = 9


def scaled_deployments(
    deployments: Iterable[Manifest], replicas: Callable[[Manifest], Iterable[Replica]]
) -> Iterator[ScaledDeployment]:
    """Every QwenDeployment that nobody deleted; `replicas` gives its own."""
    for deployment in deployments:
        if not objects.is_deleting(deployment):
            yield scaled_deployment(deployment, replicas(deployment))


def scaled_deployment(deployment: Manifest, replicas: Iterable[Replica]) -> ScaledDeployment:
    """The deployment with the leaders of its replicas that are neither being deleted nor at their end."""
    meta = deployment["metadata"]
    return ScaledDeployment(
        key=objects.key_of(deployment),
        uid=meta["uid"],
        engines=tuple(_engine(replica) for replica in replicas if not replica.deleting and not replica.broken),
        bounds=written_size_rule(deployment).bounds,
        shown=shown(deployment),
        size=last_wanted(deployment),
    )


def shown(deployment: Manifest) -> ScalingState | None:
    """What the status says of load and scaling; None where it says nothing, or in words that are not ours.

    `wanted` is None where the load did not decide.
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
    by_load = reason not in (Reason.REPLICAS_SET, Reason.NOT_CONFIGURED)
    return ScalingState(
        wanted=last_wanted(deployment) if by_load else None,
        reason=reason,
        message=str(scaling.get("message", "")),
        active=objects.holds(deployment, ConditionType.SCALING_ACTIVE),
        load=load,
    )


def _engine(replica: Replica) -> EnginePod:
    leader = replica.leader
    command = _command(leader.manifest)
    limit = _option(command, _LIMIT_OPTION)
    return EnginePod(
        pod=leader.name,
        uid=leader.uid,
        address=leader.address,
        ready=replica.up and bool(leader.address),
        draining=replica.draining,
        cordoned=leader.cordoned_since is not None,
        limit=int(limit) if limit.isascii() and limit.isdecimal() and len(limit) <= _MOST_DIGITS else 0,
        model=_option(command, _NAME_OPTION),
        replica=replica.name,
    )


def _command(pod: Manifest) -> list[str]:
    engine = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    words = [*(engine.get("command") or ()), *(engine.get("args") or ())]
    return [word for word in words if isinstance(word, str)]


def _option(command: list[str], name: str) -> str:
    """The last value of an option, as --name=value or as two words; "" where it is absent."""
    value = ""
    for index, word in enumerate(command):
        if word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
        elif word == name:
            value = next(iter(command[index + 1 : index + 2]), "")
    return value
