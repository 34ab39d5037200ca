"""Which served names have a holder and no worker that is ready. Pure.

The proxy in front of the router reads the result from a file. It answers requests for such a name itself, because the
router would answer 404 at once, as for a name that does not exist.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.claims import DeploymentKey
from qwen_operator.manifests.names import LABEL_DEPLOYMENT
from qwen_operator.manifests.ownership import is_marked_child
from qwen_operator.routing.adapters import Adapters
from qwen_operator.routing.membership import GatewayView, Membership, ready_ids

_LONGEST_START = 2**31 - 1
_DOWNLOAD = "Download"


@dataclass(frozen=True, slots=True)
class WaitingName:
    """`stopped`: the field of the spec that says that no replica comes; "" if none does. `stalled`: there is no pod,
    and none will come before a person acts.

    `startup_seconds`: how long a start takes, planned or seen, the longer one; 0 if it is not known. `started_at`:
    when the container of the oldest starting replica started, in seconds since 1970; 0 if none runs. While the model is
    being downloaded, it is when the container can start at the earliest.
    """

    name: str
    stopped: str = ""
    stalled: bool = False
    startup_seconds: int = 0
    started_at: int = 0


def waiting_names(
    observed: GatewayView, membership: Membership, before: Mapping[str, WaitingName]
) -> dict[str, WaitingName]:
    """The names of `membership.owners` that no ready worker serves, sorted.

    While smg does not answer, a name with workers stays what it was.
    """
    ready = None if observed.workers is None else ready_ids(observed.workers)
    served = {
        entry.name for entry in membership.entries if (entry.name not in before if ready is None else entry.id in ready)
    }
    waiting = {name: key for name, key in membership.owners.items() if name not in served}
    if not waiting:
        return {}
    keys = set(waiting.values())
    deployments = {key: item for item in observed.deployments if (key := DeploymentKey(*objects.key_of(item))) in keys}
    started = _started(observed.pods, deployments)
    return {
        name: WaitingName(
            name,
            _stopped(objects.mapping(deployments[key], "spec")),
            key not in started and objects.holds(deployments[key], "Stalled"),
            max(_seconds(deployments[key], part) for part in ("plan", "observed")),
            started.get(key, 0) or _fetched_at(deployments[key]),
        )
        for name, key in sorted(waiting.items())
    }


def waiting_file(waiting: Mapping[str, WaitingName], adapters: Adapters) -> str:
    """The text of the file, which also has the adapters of names. Equal arguments give equal text."""
    names = {
        one.name: {
            "stopped": one.stopped,
            "stalled": one.stalled,
            "startupSeconds": one.startup_seconds,
            "startedAt": one.started_at,
        }
        for one in waiting.values()
    }
    loaded = {"adapters": adapters} if adapters else {}
    return json.dumps({"version": 1, "waiting": names, **loaded}, indent=1) + "\n"


def _seconds(deployment: Mapping[str, Any], part: str) -> int:
    """The start-up seconds in a part of the status; 0 if there are none."""
    return untrusted.whole(objects.mapping(deployment, "status", part).get("startupSeconds"), 0, _LONGEST_START, 0)


def _fetched_at(deployment: Mapping[str, Any]) -> int:
    """When the download that the status shows will end, in seconds since 1970; 0 if it shows none."""
    progress = objects.mapping(deployment, "status", "progress")
    time = objects.moment(objects.text(progress, "finishTime")) if progress.get("phase") == _DOWNLOAD else None
    return int(time.timestamp()) if time is not None else 0


def _stopped(spec: Mapping[str, Any]) -> str:
    if spec.get("suspend") is True:
        return "spec.suspend is true"
    return "spec.replicas is 0" if spec.get("replicas") == 0 else ""


def _started(
    pods: Iterable[Mapping[str, Any]], deployments: Mapping[DeploymentKey, Mapping[str, Any]]
) -> dict[DeploymentKey, int]:
    """When the first container that runs now started, for each deployment with pods; 0 if none runs."""
    first: dict[DeploymentKey, int] = {}
    for pod in pods:
        label = str(objects.labels(pod).get(LABEL_DEPLOYMENT, ""))
        key = DeploymentKey(objects.text(pod, "metadata", "namespace"), label)
        # Labels alone make no engine: anybody may write them.
        if key not in deployments or objects.is_deleting(pod) or not is_marked_child(pod, deployments[key]):
            continue
        first.setdefault(key, 0)
        for container in objects.members(pod, "status", "containerStatuses"):
            time = objects.moment(objects.text(container, "state", "running", "startedAt"))
            if time is not None:
                first[key] = min(first[key] or 2**53, int(time.timestamp()))
    return first
