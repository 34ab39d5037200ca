"""Pods that fetch a model before engine pods need it, or an adapter while they serve, from their template. Pure.

Such a pod has the container `fetch` of the engine pods, so it takes the same lock, puts the files into the same folder,
and has the same access: namespace, service account, Secret and user. It has no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests import names
from qwen_operator.manifests.cached_adapters import fetching_only
from qwen_operator.manifests.names import Manifest, Owner
from qwen_operator.manifests.revisions import PinnedRevision

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_ON_CORDONED = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}
# Not the priority: kube-scheduler would end pods of a lower one to make room for a download.
_KEPT = (
    "automountServiceAccountToken",
    "enableServiceLinks",
    "imagePullSecrets",
    "nodeSelector",
    "schedulerName",
    "securityContext",
    "serviceAccountName",
    "tolerations",
)


def fetch_pod(owner: Owner, pinned: PinnedRevision, node: str = "") -> Manifest:
    """The pod for a revision whose model is in a cache. `node`: the only node that may run it; "" for a claim.

    The kubelet restarts the container after a failure, with growing delays, as in an engine pod.
    """
    fetch = deepcopy(dict(_container(pinned.template["spec"], names.FETCH_CONTAINER)))
    name = names.fetch_pod_name(owner.name, pinned.revision, node)
    return _pod(pinned.template, _metadata(owner, pinned, name), fetch, node)


def adapter_pod(owner: Owner, pinned: PinnedRevision, name: str, folder: str, node: str) -> Manifest:
    """The pod that fetches one adapter for engines of a revision that serve. `folder`: where they look for it.

    It has the credentials of this adapter alone, and no model. It starts also on a cordoned node: the engine there
    serves until its successor answers, and clients may ask for an adapter only when every engine has it.
    """
    fetch = fetching_only(_container(pinned.template["spec"], names.FETCH_CONTAINER), folder)
    pod = _pod(pinned.template, _metadata(owner, pinned, name), fetch, node)
    pod["spec"]["tolerations"] = [*pod["spec"].get("tolerations", ()), dict(_ON_CORDONED)]
    return pod


def _pod(template: Manifest, metadata: Manifest, fetch: Manifest, node: str) -> Manifest:
    spec = template["spec"]
    mounted = {objects.text(mount, "name") for mount in objects.members(fetch, "volumeMounts")}
    affinity = _node_affinity(objects.mapping(spec, "affinity", "nodeAffinity"), node)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **{part: deepcopy(spec[part]) for part in _KEPT if part in spec},
            **({"affinity": {"nodeAffinity": affinity}} if affinity else {}),
            "restartPolicy": "OnFailure",
            "initContainers": [fetch],
            "containers": [_last_container(spec)],
            "volumes": [dict(one) for one in objects.members(spec, "volumes") if one.get("name") in mounted],
        },
    }


def _metadata(owner: Owner, pinned: PinnedRevision, name: str) -> Manifest:
    template = pinned.template["metadata"]
    own = names.common_labels(owner, name="sglang", component=names.ROLE_FETCH)
    own |= {names.LABEL_ROLE: names.ROLE_FETCH, names.LABEL_REVISION: pinned.revision}
    metadata = names.metadata(owner, name, {**_without(template["labels"], names.LABEL_ROUTABLE), **own})
    annotations = _without(template["annotations"], names.ANNOTATION_ADAPTERS)
    metadata["annotations"] = {**annotations, **metadata["annotations"]}
    return metadata


def _without(entries: Mapping[str, Any], name: str) -> Manifest:
    return {key: value for key, value in entries.items() if key != name}


def _container(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return objects.named(objects.members(spec, "initContainers"), name)


def _last_container(spec: Mapping[str, Any]) -> Manifest:
    """A pod must have a container beside its init containers. This one ends at once."""
    small = deepcopy(dict(_container(spec, names.RUNTIME_CONTAINER)))
    small.pop("volumeMounts", None)
    return {**small, "name": names.FETCHED_CONTAINER, "command": ["python3", "-c", ""]}


def _node_affinity(given: Mapping[str, Any], node: str) -> Manifest:
    """The user's required node affinity, for this node alone if there is one."""
    terms = [dict(term) for term in objects.members(given, _REQUIRED, "nodeSelectorTerms")]
    if node:
        only = {"key": "metadata.name", "operator": "In", "values": [node]}
        terms = [{**term, "matchFields": [*objects.members(term, "matchFields"), only]} for term in terms or [{}]]
    return {_REQUIRED: {"nodeSelectorTerms": terms}} if terms else {}
