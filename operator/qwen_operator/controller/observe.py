"""Reads the store once, and makes the frozen input of one decision from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from qwen_operator import objects
from qwen_operator.api.spec import revision_hash
from qwen_operator.arbiter.types import Grant
from qwen_operator.checkpoints.hubs import HubAnswer
from qwen_operator.controller.cache import Store
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    Manifest,
    Resource,
)
from qwen_operator.manifests.names import (
    LABEL_DEPLOYMENT,
    budget_name,
    controller_revision_name,
    engine_pod_names,
    fetch_pod_name,
    inspection_pod_name,
    replica_name,
    worker_budget_name,
)
from qwen_operator.manifests.ownership import Children, children, is_marked_child
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError, revision_of
from qwen_operator.objects import ObjectKey, key_of
from qwen_operator.reconcile.plan_memory import PlanMemory
from qwen_operator.reconcile.types import Observed
from qwen_operator.replicas.adapters import Pages
from qwen_operator.replicas.node_health import NodeHealth, node_health
from qwen_operator.replicas.places import Neighbours
from qwen_operator.replicas.pod_state import PodState, is_gated
from qwen_operator.replicas.scaling_view import shown
from qwen_operator.scaling.types import ScalingState
from qwen_operator.status.progress import ProgressPage

# The operator checks the names of this many replicas for pods of other owners. New replicas take the lowest free index.
# If foreign pods had more names than this, the API server would report the next one with a 409.
FOREIGN_PODS_SEEN = 128


class Observer:
    """Reads the store. Results that depend on all objects of a kind are computed once per change of that kind.

    `scaling` returns the scaling state of the QwenDeployment with a namespace, name and uid. `hub` returns the answer
    of a model hub for a QwenDeployment. `pages` returns how far all downloads are, by the pods' uids. `grants` returns
    what a QwenDeployment may have of GPUs that are short. `adapter_pages` returns what engines say of their adapters.
    """

    def __init__(
        self,
        store: Store,
        pools: tuple[GpuPool, ...],
        scaling: Callable[[str, str, str], ScalingState | None],
        hub: Callable[[ObjectKey], HubAnswer | None] = lambda _key: None,
        pages: Callable[[], Mapping[str, ProgressPage]] = dict,
    ) -> None:
        self._store = store
        self._pools = pools
        self._scaling = scaling
        self._hub = hub
        self._pages = pages
        self.grants: Callable[[ObjectKey], Grant | None] = lambda _key: None
        self.adapter_pages: Callable[[], Pages] = dict
        self._hardware: tuple[int, Inventory, NodeHealth] = (-1, Inventory(), NodeHealth())
        self._deployments = -1
        self._plans = PlanMemory()

    def deployment(self, key: ObjectKey) -> Manifest | None:
        """The QwenDeployment alone."""
        return self._store.get(QWENDEPLOYMENTS, key)

    def observe(self, key: ObjectKey) -> Observed | None:
        """Everything that decides about this QwenDeployment; None if it does not exist, or not all is known."""
        deployment = self._store.get(QWENDEPLOYMENTS, key)
        if deployment is None or key[0] in self._store.unreadable:
            return None
        meta, name = deployment["metadata"], deployment["metadata"]["name"]
        revision = revision_hash(objects.mapping(deployment, "spec"), objects.annotations(deployment))
        revisions = self._children(CONTROLLER_REVISIONS, deployment, [controller_revision_name(name, revision)])
        _, gpus, nodes = self._current_hardware()
        engine_pods = self._store.engine_pods(deployment)
        pinned = {
            revision_of(item): self._store.pinned(item)
            for item in revisions.owned.values()
            if not objects.is_deleting(item)
        }
        prefetches = objects.mapping(deployment, "spec").get("prefetch") is True
        needed = [*_pod_names(name, revision, pinned.get(revision)), inspection_pod_name(name, revision)]
        needed += [fetch_pod_name(name, revision, node) for node in ("", *nodes.names)] if prefetches else []
        return Observed(
            deployment=deployment,
            pods=self._children(PODS, deployment, needed),
            engine_pods=engine_pods,
            fetch_pods=self._store.fetch_pods(deployment),
            adapter_pods=self._store.adapter_pods(deployment),
            revisions=revisions,
            pinned=pinned,
            budgets=self._children(POD_DISRUPTION_BUDGETS, deployment, [budget_name(name), worker_budget_name(name)]),
            quotas=tuple(self._store.in_namespace(RESOURCE_QUOTAS, meta["namespace"])),
            nodes=nodes,
            scaling=self._scaling(*key, meta["uid"]) or shown(deployment),
            inventory=gpus,
            names=self._store.names.share(key),
            hub=self._hub(key),
            plans=self._current_plans(),
            pages=self._pages(),
            adapter_pages=self.adapter_pages(),
            neighbours=self._neighbours(engine_pods, nodes, wanted=prefetches),
            grant=self.grants(key),
        )

    def _neighbours(self, engine_pods: Iterable[PodState], nodes: NodeHealth, *, wanted: bool) -> Neighbours | None:
        """Everything that takes GPUs, if it is wanted, or one of these pods waits for a decision about it."""
        if not nodes.names or not (wanted or any(is_gated(state.manifest) for state in engine_pods)):
            return None
        pods = (pod for pod in self._store.all(PODS) if objects.node_of(pod) or self._is_controlled(pod))
        return Neighbours(tuple(self._store.all(NODES)), tuple(pods))

    def _is_controlled(self, pod: Manifest) -> bool:
        namespace, name = objects.text(pod, "metadata", "namespace"), objects.labels(pod).get(LABEL_DEPLOYMENT)
        deployment = self._store.get(QWENDEPLOYMENTS, (namespace, str(name)))
        return deployment is not None and is_marked_child(pod, deployment)

    def _children(self, resource: Resource, deployment: Manifest, names: Iterable[str]) -> Children:
        """The objects that name the deployment, and all objects with a name that it needs, sorted by name."""
        namespace = deployment["metadata"]["namespace"]
        items = {key_of(item): item for item in self._store.related(resource, deployment)}
        for name in names:
            item = self._store.get(resource, (namespace, name))
            if item is not None:
                items[namespace, name] = item
        return children((items[key] for key in sorted(items)), deployment)

    def _current_hardware(self) -> tuple[int, Inventory, NodeHealth]:
        generation = self._store.generation(NODES)
        if self._hardware[0] != generation:
            nodes = list(self._store.all(NODES))
            self._hardware = (generation, inventory(nodes, self._pools), node_health(nodes))
        return self._hardware

    def _current_plans(self) -> PlanMemory:
        generation = self._store.generation(QWENDEPLOYMENTS)
        if self._deployments != generation:
            self._deployments = generation
            self._plans.keep({item["metadata"]["uid"] for item in self._store.all(QWENDEPLOYMENTS)})
        return self._plans


def _pod_names(name: str, revision: str, pinned: PinnedRevision | UnreadableRevisionError | None) -> list[str]:
    """The names that the pods of the first replicas of this revision have or would have."""
    pods = pinned.plan.nodes_per_replica if isinstance(pinned, PinnedRevision) else 1
    replicas = (replica_name(name, revision, index) for index in range(FOREIGN_PODS_SEEN))
    return [pod for replica in replicas for pod in engine_pod_names(replica, pods)]
