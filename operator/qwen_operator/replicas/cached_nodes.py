"""Which nodes or which claim have a model in their cache, and pods that prefer these nodes. Pure.

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
from qwen_operator.manifests.model_cache import claim_folder, node_folder
from qwen_operator.manifests.names import ANNOTATION_CACHED_ON, LABEL_ROLE, ROLE_ENGINE, ROLE_ENGINE_WORKER, Manifest
from qwen_operator.manifests.revisions import PinnedRevision, revision_of
from qwen_operator.replicas.node_health import NodeHealth
from qwen_operator.replicas.pod_state import PodState, fetch_of

MOST_NODES = 16
_WEIGHT = 100
_NOTHING_KNOWN = NodeHealth()
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


def noted(
    revision: Manifest,
    pinned: PinnedRevision,
    pods: Iterable[PodState],
    nodes: NodeHealth = _NOTHING_KNOWN,
    *,
    claims: bool = False,
) -> str:
    """The value that the annotation should have; "" for none. It changes only if a node is new and there is room.

    Nodes that are gone go first, and then those without a pod of the revision. So it does not change for ever if more
    nodes have such pods. `claims`: it also notes a claim.
    """
    own = [pod for pod in pods if pod.revision == pinned.revision]
    if not node_folder(pinned.template):
        claim, _ = claim_folder(pinned.template)
        return claim if claims and any(_has_fetched(pod) for pod in own) else ""
    known = _annotated(revision)
    seen = [node for pod in own if (node := _node(pod))]
    present = [node for node in known if node in seen]
    past = sorted((node for node in known if node not in seen), key=nodes.gone)
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
    if not (running and node_folder(running.template)):
        return ()
    same = _with_same_model(running, readable)
    seen = [_node(pod) for pod in pods if pod.revision in same]
    remembered = remembered_places(running, revisions, readable)
    return tuple(node for node in dict.fromkeys((*seen, *remembered)) if node)


def remembered_places(
    running: PinnedRevision, revisions: Mapping[str, Manifest], readable: Mapping[str, PinnedRevision]
) -> tuple[str, ...]:
    """The nodes that annotations name for the model of this revision or, if it is in a claim, the claim.

    The other arguments are as in `known_nodes`.
    """
    same = _with_same_model(running, readable)
    return tuple(place for item in revisions.values() if revision_of(item) in same for place in _annotated(item))


def claim_has_model(
    running: PinnedRevision,
    revisions: Mapping[str, Manifest],
    readable: Mapping[str, PinnedRevision],
    pods: Iterable[PodState],
) -> bool:
    """Whether a pod has fetched the model of the running revision into its claim. Arguments as in `known_nodes`."""
    claim, _ = claim_folder(running.template)
    same = _with_same_model(running, readable)
    fetched = any(_has_fetched(pod) for pod in pods if pod.revision in same)
    return fetched or claim in remembered_places(running, revisions, readable)


def _with_same_model(running: PinnedRevision, readable: Mapping[str, PinnedRevision]) -> set[str]:
    """The revisions whose model is in the same place of a cache."""
    place = _place(running)
    return {running.revision, *(name for name, pinned in readable.items() if _place(pinned) == place)}


def _place(pinned: PinnedRevision) -> tuple[str, str]:
    folder = node_folder(pinned.template)
    return ("", folder) if folder else claim_folder(pinned.template)


def preferring(actions: Iterable[Action], nodes: Sequence[str]) -> tuple[Action, ...]:
    """The actions, with engine pods that prefer these nodes, or the first MOST_NODES of them."""
    return tuple(_preferring(action, nodes[:MOST_NODES]) for action in actions) if nodes else tuple(actions)


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


def _has_fetched(pod: PodState) -> bool:
    return fetch_of(pod.manifest).finished is not None


def _node(pod: PodState) -> str:
    """The node on which the pod's fetch has succeeded; "" if it has not."""
    return pod.node if _has_fetched(pod) and _NODE.fullmatch(pod.node) else ""


def _annotated(revision: Manifest) -> list[str]:
    """The nodes of the annotation. Who may edit the object may write anything there."""
    value = objects.annotations(revision).get(ANNOTATION_CACHED_ON)
    names = value.split(",")[:MOST_NODES] if isinstance(value, str) else []
    return [name for name in names if _NODE.fullmatch(name)]
