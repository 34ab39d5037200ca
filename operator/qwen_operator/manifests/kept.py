"""What the stores keep of the objects that the operator makes: what some code reads, and no more than a bound of it.

Whoever may edit an object may fill it up to the API server's limit of about 1.5 MB. As Python objects that is up to
30 MB. Tolerance for such an object costs the other tenants nothing, as long as the stores do not keep all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.pod import OWN_PREFIXES
from qwen_operator.api.spec import UNKEPT
from qwen_operator.manifests.image_edits import image_editors
from qwen_operator.manifests.names import ENGINE_CONTAINER, GROUP, Manifest
from qwen_operator.objects import Each, Names, Shape, kept

CUT = f"{GROUP}/cut"
"""A top-level member of a stored object whose labels or annotations were cut, so that nobody may compare them.

The API server stores no such member of a built-in kind.
"""
ROOM = f"{GROUP}/room"
"""A top-level member of a stored node: the allocatable CPU, memory and number of pods."""
REVISION_LEVELS = 64
"""A spec has at most 32 levels. A pod and the record of a revision add a few."""
_REVISION_VALUES = 12_288
_REVISION_CHARACTERS = 512 * 1024
# An engine pod may have 32 labels and 32 annotations of up to 4096 characters from its spec.
_MOST_NAMES = 256
_MOST_NAME_CHARACTERS = 192 * 1024
_OWN_NAMES = 64
_NAME = 512
# The kubelet keeps 4096 bytes of a termination message.
_MESSAGE = 4096
_COMMAND = 512
_COMMAND_CHARACTERS = 64 * 1024

_OWNER = dict.fromkeys(("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"), _NAME)
_META: Shape = {
    **dict.fromkeys(("name", "namespace", "uid", "resourceVersion", "generation"), _NAME),
    **dict.fromkeys(("creationTimestamp", "deletionTimestamp"), _NAME),
    "ownerReferences": Each(_OWNER, 16),
}
_END = dict.fromkeys(("exitCode", "signal", "reason", "message", "startedAt", "finishedAt"), _MESSAGE)
_STATE = {
    "running": {"startedAt": _NAME},
    "waiting": {"reason": _NAME, "message": _MESSAGE},
    "terminated": _END,
}
_CONTAINER_STATUS = {
    **dict.fromkeys(("name", "image", "imageID", "ready", "started", "restartCount"), _NAME),
    "state": _STATE,
    "lastState": _STATE,
}
_POD_STATUS: Shape = {
    **dict.fromkeys(("phase", "reason", "podIP", "startTime"), _NAME),
    "message": _MESSAGE,
    "conditions": Each(
        {**dict.fromkeys(("type", "status", "reason", "lastTransitionTime"), _NAME), "message": _MESSAGE}, 32
    ),
    "containerStatuses": Each(_CONTAINER_STATUS, 32),
    "initContainerStatuses": Each(_CONTAINER_STATUS, 32),
}
_IMAGE = {"name": _NAME, "image": 1024}
_POD_SPEC: Shape = {
    **dict.fromkeys(("nodeName", "schedulerName", "terminationGracePeriodSeconds", "hostNetwork"), _NAME),
    "volumes": Each({"persistentVolumeClaim": {"claimName": _NAME}, "image": {"reference": _NAME}}, 64),
    "nodeSelector": Names(64, 253),
    "schedulingGates": Each({"name": _NAME}, 16),
    "tolerations": Each(dict.fromkeys(("key", "operator", "value", "effect"), _NAME), 64),
    "containers": Each(
        {
            **_IMAGE,
            "ports": Each({"hostPort": 32}, 64),
            "startupProbe": {"failureThreshold": 32, "periodSeconds": 32},
            "resources": {"limits": Names(32, 64), "requests": Names(32, 64)},
        },
        64,
    ),
    "initContainers": Each(
        {**_IMAGE, "restartPolicy": _NAME, "resources": {"limits": Names(32, 64), "requests": Names(32, 64)}}, 64
    ),
    "overhead": Names(32, 64),
}
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
# Half an affinity would mean something else, so a larger one is not kept at all. Then the scheduler alone decides.
_AFFINITY_VALUES = 512
_EXPRESSIONS = Each({"key": _NAME, "operator": _NAME, "values": Each(_NAME, _AFFINITY_VALUES)}, _AFFINITY_VALUES)
_AFFINITY: Shape = {
    "nodeSelectorTerms": Each({"matchExpressions": _EXPRESSIONS, "matchFields": _EXPRESSIONS}, _AFFINITY_VALUES)
}
_AMOUNTS = Names(256, 253)
_QUOTA: Shape = {
    "spec": {"hard": _AMOUNTS, "scopes": Each(64, 1), "scopeSelector": {"matchExpressions": Each({}, 1)}},
    "status": {"hard": _AMOUNTS, "used": _AMOUNTS},
}


def kept_pod(pod: Mapping[str, Any]) -> Manifest:
    """What is read of an engine or inspection pod."""
    content = kept(dict(pod), {"spec": _POD_SPEC, "status": _POD_STATUS})
    given = objects.named(objects.members(pod, "spec", "containers"), ENGINE_CONTAINER)
    engine = objects.named(objects.members(content, "spec", "containers"), ENGINE_CONTAINER)
    if isinstance(engine, dict):
        engine |= {part: given[part] for part in ("command", "args") if _is_command(given.get(part))}
    required = objects.mapping(pod, "spec", "affinity", "nodeAffinity", _REQUIRED)
    if required and untrusted.size_of(required, most=_AFFINITY_VALUES).values <= _AFFINITY_VALUES:
        content["spec"]["affinity"] = {"nodeAffinity": {_REQUIRED: kept(required, _AFFINITY)}}
    top = _top(pod)
    if editors := image_editors(pod):
        top["metadata"]["managedFields"] = editors
    return {**top, **content}


def kept_revision(revision: Mapping[str, Any]) -> Manifest:
    """What is read of a ControllerRevision. One of another owner may hold anything."""
    data = revision.get("data")
    number = {"revision": kept(revision["revision"], _NAME)} if "revision" in revision else {}
    fault = revision.get(UNKEPT) or data_fault(data)
    content = {"data": data} if fault is None else {"data": {}, UNKEPT: fault}
    return {**_top(revision), **number, **content}


def data_fault(data: object) -> str | None:
    """Why the data of a ControllerRevision is none of ours: it is too deep or too large. None if it is neither."""
    size = untrusted.size_of(data, most=2 * _REVISION_VALUES)
    if size.levels > REVISION_LEVELS:
        return f"it has {size.levels} levels, it must have at most {REVISION_LEVELS}"
    if size.values > _REVISION_VALUES:
        return f"it has more than {_REVISION_VALUES} keys and entries"
    if size.characters > _REVISION_CHARACTERS:
        return f"it has {size.characters} characters, it must have at most {_REVISION_CHARACTERS}"
    return None


def kept_budget(budget: Mapping[str, Any]) -> Manifest:
    """What is read of a PodDisruptionBudget: not its status, which counts pods and changes often."""
    spec = objects.mapping(budget, "spec")
    size = untrusted.size_of(spec, most=256)
    small = size.levels <= 8 and size.values <= 256 and size.characters <= 16_384
    return {**_top(budget), "spec": spec if small else {}}


def kept_quota(quota: Mapping[str, Any]) -> Manifest:
    """What is read of a ResourceQuota."""
    return {**_top(quota), **kept(dict(quota), _QUOTA)}


def kept_priority(priority: Mapping[str, Any]) -> Manifest:
    """What is read of a PriorityClass."""
    return {**_top(priority), **kept(dict(priority), {"value": _NAME, "globalDefault": _NAME})}


def _is_command(value: object) -> bool:
    if not isinstance(value, list) or len(value) > _COMMAND:
        return False
    return untrusted.size_of(value).characters <= _COMMAND_CHARACTERS


def _top(item: Mapping[str, Any]) -> Manifest:
    """apiVersion, kind and metadata."""
    meta = kept(item.get("metadata"), _META) or {}
    cut = {CUT: True} if CUT in item else {}
    for part in ("labels", "annotations"):
        entries = objects.mapping(item, "metadata", part)
        size = untrusted.size_of(entries, most=_MOST_NAMES)
        if size.values > _MOST_NAMES or size.characters > _MOST_NAME_CHARACTERS:
            cut = {CUT: True}
            own = sorted(name for name in entries if name.startswith(OWN_PREFIXES))[:_OWN_NAMES]
            meta[part] = kept({name: entries[name] for name in own}, Names(_OWN_NAMES, _MESSAGE))
        elif entries:
            meta[part] = entries
    return {**{name: item[name] for name in ("apiVersion", "kind") if name in item}, "metadata": meta, **cut}
