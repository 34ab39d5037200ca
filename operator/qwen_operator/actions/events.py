"""Events as manifests. Pure.

The name of an Event depends only on the observation. So a repeated step makes the same name and posts nothing new.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import Event
from qwen_operator.manifests.names import Manifest
from qwen_operator.untrusted import clean


def rfc3339(now: datetime) -> str:
    """RFC 3339 to the second, in UTC."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def transition_event(deployment: Manifest, event: Event, now: str) -> Manifest:
    """The Event of a change of conditions; `now` is RFC 3339."""
    before = [
        [condition.get(part) for part in ("type", "status", "reason", "lastTransitionTime")]
        for condition in objects.members(deployment, "status", "conditions")
    ]
    return _manifest(deployment, event, [deployment["metadata"].get("generation"), before], now)


def resize_events(deployment: Manifest, new: Manifest, now: str) -> tuple[Manifest, ...]:
    """The Event of a changed number of wanted replicas: between the present status and the status `new`."""
    before, after = objects.mapping(deployment, "status", "scaling"), objects.mapping(new, "scaling")
    old, wanted = before.get("wanted"), after.get("wanted")
    if not isinstance(old, int) or not isinstance(wanted, int) or old == wanted:
        return ()
    reason = Reason.SCALED_UP if wanted > old else Reason.SCALED_DOWN
    event = Event("Normal", str(reason), f"{old} -> {wanted}: {after['message']}")
    return (action_event(deployment, event, [str(before.get("since")), f"{old} -> {wanted}"], now),)


def grant_events(deployment: Manifest, new: Manifest, short: str, now: str) -> tuple[Manifest, ...]:
    """The Event of a changed number of granted replicas. `short`: why it gets no more."""
    before, after = objects.mapping(deployment, "status", "scaling"), objects.mapping(new, "scaling")
    old, granted = before.get("granted"), after.get("granted")
    if old == granted:
        return ()
    event = Event("Normal", str(Reason.GPUS_GRANTED), "the GPUs suffice again for all wanted replicas")
    if granted is not None:
        event = Event("Normal", str(Reason.GPUS_SHORT), short)
    return (action_event(deployment, event, [str(before.get("since")), f"{old} -> {granted}"], now),)


@dataclass(frozen=True, slots=True)
class LostReplica:
    """A replica whose node is lost: the uid of its first pod, and what happens."""

    uid: str
    message: str


def lost_node_events(deployment: Manifest, lost: Iterable[LostReplica], now: str) -> list[Manifest]:
    """One Event for each lost replica, however often it is reported."""
    return [
        action_event(deployment, Event("Warning", str(Reason.NODE_LOST), replica.message), [replica.uid], now)
        for replica in lost
    ]


def failure_events(deployment: Manifest, failure: objects.Object, now: str) -> list[Manifest]:
    """The Event of a new `status.lastFailure`, so that each crash and each eviction has one. `failure` may be {}."""
    before = objects.mapping(deployment, "status", "lastFailure")
    about = [str(failure.get("pod")), str(failure.get("time"))]
    if not failure or about == [str(before.get("pod")), str(before.get("time"))]:
        return []
    lines = failure.get("log") or []
    cause = f": {lines[-1]}" if lines else ""
    code = failure.get("exitCode", -1)
    end = f"ended with exit code {code}" if code >= 0 else "ended"
    if failure["reason"] == Reason.GROUP_NOT_PLACED:
        end = "was not placed"
    event = Event("Warning", str(failure["reason"]), f"{failure['pod']} {end}{cause}")
    return [action_event(deployment, event, about, now)]


def action_event(deployment: Manifest, event: Event, about: list[str], now: str) -> Manifest:
    """The Event of an action. `about` distinguishes it from other Events of its reason, for example by a pod's uid."""
    return _manifest(deployment, event, about, now)


def _manifest(deployment: Manifest, event: Event, about: object, now: str) -> Manifest:
    meta = deployment["metadata"]
    identity = json.dumps([meta["uid"], event.reason, about])
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name']}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": meta["namespace"],
        },
        "involvedObject": {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion"),
        },
        "type": event.type,
        "reason": event.reason,
        "message": clean(event.message, 1024),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": "qwen-operator"},
        "reportingComponent": "qwen-operator",
    }
