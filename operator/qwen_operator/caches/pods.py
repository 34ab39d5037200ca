"""The pods that list and clean a cache. Pure.

They run in the namespace of the cache, and meet the restricted Pod Security profile except for a folder of the node. On
a node they mount only the namespace's own folder of the cache. A claim they mount as a whole, also what else it has,
and use only the cache's folder. No existing pod would do: an engine mounts only its own model, read-only, and the
containers that fetch have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from qwen_operator.manifests import model_cache
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.pod_parts import CONTAINER_SECURITY, POD_SECURITY
from qwen_operator.planning.types import CacheType, ModelCache

COMPONENT_LABEL = "app.kubernetes.io/component"
COMPONENT = "cache-command"
CONTAINER = "cache"
LIFE_SECONDS = 300
"""The kubelet ends a pod after so long, even if nobody deletes it."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the pods reach the cache: the operator's image with its pull secrets, and the cache of the chart."""

    cache: ModelCache
    image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """One cache: a node's folder or the claim of a namespace. `node` is "" if any node can mount the claim."""

    namespace: str
    name: str
    node: str = ""


def cache_pod(access: Access, place: Place, name: str, words: Sequence[str]) -> Manifest:
    """The pod that runs `qwen-operator cache-files` with these words.

    It goes to its node without the scheduler, so no taint keeps it away: what is cached on a node that takes no new
    pods must be seen too.
    """
    volume, mount, folder = model_cache.whole(access.cache, place.namespace)
    container = {
        "name": CONTAINER,
        "image": access.image,
        "imagePullPolicy": access.pull_policy,
        "command": ["qwen-operator", "cache-files", f"--cache={folder}", *words],
        # Equal requests and limits satisfy every ResourceQuota and LimitRange ratio.
        "resources": {part: {"cpu": "100m", "memory": "128Mi"} for part in ("requests", "limits")},
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "volumeMounts": [mount],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFE_SECONDS,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": deepcopy(POD_SECURITY),
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [volume],
        **({"nodeName": place.node} if place.node else {}),
        **({"imagePullSecrets": [{"name": one} for one in access.pull_secrets]} if access.pull_secrets else {}),
    }
    labels = {"app.kubernetes.io/name": "qwen-operator", COMPONENT_LABEL: COMPONENT}
    metadata = {"name": name, "namespace": place.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def of_node(access: Access) -> bool:
    """Whether every node has a cache of its own."""
    return access.cache.type is CacheType.HOST_PATH
