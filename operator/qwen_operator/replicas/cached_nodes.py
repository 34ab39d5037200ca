"""Which nodes have a model in their cache, and pods that prefer them. Pure.

A pod that fetched its model on a node shows that the node has it. An annotation of the ControllerRevision remembers
the node after the pod is gone. The operator looks at no node: a model may have been removed there since. Then the pod
downloads it again, as on any other node.

The preference is added when a pod is created. It is part of no revision, so it replaces no pod.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

from qwen_operator import objects
from qwen_operator.actions.types import Action, Create, Kind
from qwen_operator.manifests.model_cache import node_folder
from qwen_operator.manifests.names import ANNOTATION_CACHED_ON, LABEL_ROLE, ROLE_ENGINE, ROLE_ENGINE_WORKER, Manifest
from qwen_operator.manifests.revisions import PinnedRevision, revision_of
from qwen_operator.replicas.pod_state import PodState, fetch_of

MOST_NODES = 16
_WEIGHT = 100
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


def noted(revision: Manifest, pinned: PinnedRevision, pods: Iterable[PodState]) -> str:
    """The value that the annotation should have; "" for none. It changes only if a node is new and there is room.

    Nodes without a pod of the revision go first. So it does not change for ever if more nodes have such pods.
    """
    if not node_folder(pinned.template):
        return ""
    known = _annotated(revision)
    seen = [node for pod in pods if pod.revision == pinned.revision and (node := _node(pod))]
    present = [node for node in known if node in seen]
    past = [node for node in known if node not in seen]
    kept = list(dict.fromkeys((*present, *seen, *past)))[:MOST_NODES]
    return ",".join(known if set(kept) == set(known) else kept)


def known_nodes(
    running: PinnedRevision | None,
    revisions: Mapping[str, Manifest],
    readable: Mapping[str, PinnedRevision],
    pods: Iterable[PodState],
) -> tuple[str, ...]:
    """The nodes that have the model of the running revision, of this and of other revisions with the same model.

    `revisions` are the ControllerRevisions by name, `readable` what they pin by hash.
    """
    folder = node_folder(running.template) if running else ""
    if not folder:
        return ()
    same = {name for name, pinned in readable.items() if node_folder(pinned.template) == folder}
    seen = [_node(pod) for pod in pods if pod.revision in same]
    remembered = [node for item in revisions.values() if revision_of(item) in same for node in _annotated(item)]
    return tuple(node for node in dict.fromkeys((*seen, *remembered)) if node)[:MOST_NODES]


def preferring(actions: Iterable[Action], nodes: Sequence[str]) -> tuple[Action, ...]:
    """The actions, with engine pods that prefer these nodes."""
    return tuple(_preferring(action, nodes) for action in actions) if nodes else tuple(actions)


def _preferring(action: Action, nodes: Sequence[str]) -> Action:
    if not isinstance(action, Create) or action.kind is not Kind.POD:
        return action
    if objects.labels(action.manifest).get(LABEL_ROLE) not in (ROLE_ENGINE, ROLE_ENGINE_WORKER):
        return action
    pod = deepcopy(action.manifest)
    affinity = pod["spec"].setdefault("affinity", {}).setdefault("nodeAffinity", {})
    # A field selector takes one name.
    fields = ({"key": "metadata.name", "operator": "In", "values": [node]} for node in nodes)
    terms = [{"weight": _WEIGHT, "preference": {"matchFields": [field]}} for field in fields]
    affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).extend(terms)
    return Create(action.kind, pod, action.reason)


def _node(pod: PodState) -> str:
    """The node on which the pod's fetch has succeeded; "" if it has not."""
    return pod.node if fetch_of(pod.manifest).finished is not None and _NODE.fullmatch(pod.node) else ""


def _annotated(revision: Manifest) -> list[str]:
    """The nodes of the annotation. Who may edit the object may write anything there."""
    value = objects.annotations(revision).get(ANNOTATION_CACHED_ON)
    names = value.split(",")[:MOST_NODES] if isinstance(value, str) else []
    return [name for name in names if _NODE.fullmatch(name)]
