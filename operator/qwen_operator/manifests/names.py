"""Names, labels and annotations of everything that the operator makes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]

GROUP = "qwen-operator.dev"
LABEL_DEPLOYMENT = f"{GROUP}/deployment"
LABEL_ROLE = f"{GROUP}/role"
LABEL_ROUTABLE = f"{GROUP}/routable"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_REPLICA = f"{GROUP}/replica"
"""The name of the replica, only on the pods of a replica over several nodes."""
LABEL_RANK = f"{GROUP}/rank"
ANNOTATION_OWNER_UID = f"{GROUP}/owner-uid"
ANNOTATION_DRAINING_SINCE = f"{GROUP}/draining-since"
ANNOTATION_DRAIN_REASON = f"{GROUP}/drain-reason"
ANNOTATION_CORDONED_SINCE = f"{GROUP}/cordoned-since"
ANNOTATION_REPLICA_PODS = f"{GROUP}/replica-pods"
ANNOTATION_GROUP_LEADER = f"{GROUP}/group-leader"
"""The address of the replica's first pod, and its uid. The operator writes it as soon as that pod has an address."""
ANNOTATION_RELEASED_AT = f"{GROUP}/released-at"
"""When the operator let the scheduler place the pod."""
ANNOTATION_CACHED_ON = f"{GROUP}/cached-on"
"""The nodes on which pods of a revision fetched their model, separated by commas. A ControllerRevision has it.

With spec.prefetch and a cache in a claim, it is the name of the claim.
"""
ANNOTATION_FETCH_PODS = f"{GROUP}/fetch-pods"
"""How many pods were created for spec.prefetch since a place last got the model, when the first and the last one were,
and a hash of the places that have it. A ControllerRevision has it."""
ANNOTATION_ADAPTER_PODS = f"{GROUP}/adapter-pods"
"""The same about pods that fetch adapters while engines serve, with a hash of what is missing."""
ANNOTATION_ADAPTERS_LOADED = f"{GROUP}/adapters-loaded"
"""An engine has had all adapters of the revision. A ControllerRevision has it, with the value "true"."""
ANNOTATION_FETCH_FAILURES = f"{GROUP}/fetch-failures"
"""How many replicas gave their GPUs back because their model could not be fetched, when the last one did, and why. A
ControllerRevision has it."""
ANNOTATION_ADAPTERS = f"{GROUP}/adapters"
"""The names of the adapters that the engine has, with commas between them."""
ANNOTATION_ADAPTERS_WANTED = f"{GROUP}/adapters-wanted"
"""The adapters that the engine should have: a JSON object with their folders in the container by name."""
ANNOTATION_TOPOLOGY = f"{GROUP}/topology"
"""KEY=Preferred or KEY=Required: the label of nodes whose value the nodes of a replica share."""
GROUP_GATE = f"{GROUP}/group"
"""The scheduling gate of the pods of a replica over several nodes."""
ROLE_ENGINE = "engine"
ROLE_ENGINE_WORKER = "engine-worker"
ROLE_INSPECTION = "inspection"
ROLE_FETCH = "fetch"
ENGINE_CONTAINER = "engine"
INSPECTION_CONTAINER = "inspection"
SOURCE_VOLUME = "source"
"""The volume with the model, if that is on a claim or in an image. Users cannot give this name to another one."""
IMAGE_CONTAINER = "image"
"""A container of an inspection pod that never runs. Its status shows the digest of an image."""
FETCH_CONTAINER = "fetch"
RUNTIME_CONTAINER = "runtime"
FETCHED_CONTAINER = "fetched"
ENGINE_PORT = 8000
MAX_REPLICA_PODS = 64
"""No replica has more pods than this. It is the limit of spec.hardware.maxGpusPerReplica."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The QwenDeployment that a child belongs to."""

    name: str
    namespace: str
    uid: str


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """What a pod belongs to: the QwenDeployment, and the hash of the revision that the pod runs or inspects."""

    owner: Owner
    revision: str


def replica_name(deployment: str, revision: str, index: int) -> str:
    return f"{deployment}-{revision}-{index}"


def engine_pod_names(replica: str, pods: int) -> tuple[str, ...]:
    """The pods of a replica by rank. A single pod has the name of its replica; several append their rank."""
    return (replica,) if pods == 1 else tuple(f"{replica}-{rank}" for rank in range(pods))


def inspection_pod_name(deployment: str, revision: str) -> str:
    return f"{deployment}-{revision}-inspect"


def fetch_pod_name(deployment: str, revision: str, node: str = "") -> str:
    """The pod that fetches a model before engine pods need it: into a claim, or on this node.

    A node's name may be longer than a pod's name may become, so a part of its hash stands for it.
    """
    ending = f"-{hashlib.sha256(node.encode()).hexdigest()[:6]}" if node else ""
    return f"{deployment}-{revision}-fetch{ending}"


_FETCH_ENDING = re.compile(r"-[0-9a-f]{8}-fetch(-[0-9a-f]{6})?")


def is_fetch_pod_name(deployment: str, name: str) -> bool:
    """Whether it is a name of `fetch_pod_name`, for any revision and node."""
    return name.startswith(deployment) and _FETCH_ENDING.fullmatch(name, len(deployment)) is not None


def adapter_pod_name(deployment: str, revision: str, place: str) -> str:
    """The pod that fetches an adapter for engines that serve. `place` stands for the adapter and for where it goes."""
    return f"{deployment}-{revision}-adapter-{hashlib.sha256(place.encode()).hexdigest()[:6]}"


_ADAPTER_ENDING = re.compile(r"-[0-9a-f]{8}-adapter-[0-9a-f]{6}")


def is_adapter_pod_name(deployment: str, name: str) -> bool:
    """Whether it is a name of `adapter_pod_name`, for any revision and place."""
    return name.startswith(deployment) and _ADAPTER_ENDING.fullmatch(name, len(deployment)) is not None


# The hash of a revision, and then an index, perhaps with a rank, or the word of an inspection or of what is fetched.
_POD_ENDING = re.compile(r"-[0-9a-f]{8}-([0-9]{1,7}(-[0-9]{1,2})?|inspect|fetch(-[0-9a-f]{6})?|adapter-[0-9a-f]{6})")


def is_pod_name(deployment: str, name: str) -> bool:
    """Whether the name is one that the operator gives to a pod of this deployment, for any revision."""
    return name.startswith(deployment) and _POD_ENDING.fullmatch(name, len(deployment)) is not None


def controller_revision_name(deployment: str, revision: str) -> str:
    return f"{deployment}-{revision}"


def budget_name(deployment: str) -> str:
    """The PodDisruptionBudget of a deployment's replicas."""
    return f"{deployment}-engine"


def worker_budget_name(deployment: str) -> str:
    """The PodDisruptionBudget of the other pods of replicas over several nodes."""
    return f"{deployment}-engine-worker"


def engine_selector(deployment: str) -> str:
    """The label selector of a deployment's replicas, as in `status.selector`: engine pods that are not draining."""
    return ",".join(f"{label}={value}" for label, value in engine_labels(deployment).items())


def engine_labels(deployment: str) -> dict[str, str]:
    """The labels of the engine pods that get requests as soon as they are ready."""
    return {LABEL_DEPLOYMENT: deployment, LABEL_ROLE: ROLE_ENGINE, LABEL_ROUTABLE: "true"}


def worker_labels(deployment: str) -> dict[str, str]:
    """The labels of the pods that do not lead their replica. No pod has these and those of `engine_labels`."""
    return {LABEL_DEPLOYMENT: deployment, LABEL_ROLE: ROLE_ENGINE_WORKER}


def common_labels(owner: Owner, *, name: str, component: str) -> dict[str, str]:
    """Labels of every child. `name` is the program that it runs, `component` is its part in the deployment."""
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/instance": owner.name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "qwen-operator",
        "app.kubernetes.io/managed-by": "qwen-operator",
        LABEL_DEPLOYMENT: owner.name,
    }


def metadata(owner: Owner, name: str, labels: dict[str, str]) -> Manifest:
    """Metadata of a child. It has an owner reference and the annotation with the owner's uid.

    With the annotation, the operator can restore a lost owner reference. It never takes over an object of others.
    """
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "annotations": {ANNOTATION_OWNER_UID: owner.uid},
        "ownerReferences": [owner_reference(owner)],
    }


def owner_reference(owner: Owner) -> Manifest:
    """The controller reference to the deployment."""
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "QwenDeployment",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
