"""From the store to the frozen input of one decision."""

from qwen_operator.api.claims import Claims, DeploymentKey, claims
from qwen_operator.api.spec import revision_hash
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, PODS, QWENDEPLOYMENTS, SERVICES, Manifest, Resource
from qwen_operator.manifests.names import (
    controller_revision_name,
    engine_pod_name,
    headless_service_name,
    inspection_pod_name,
)
from qwen_operator.reconcile.model import Observed
from qwen_operator.reconcile.store import Key, Store, key_of

MAX_REPLICAS = 64


class Observer:
    """Reads the store. What depends on all objects of a kind is computed once per change of that kind."""

    def __init__(self, store: Store, pools: tuple[GpuPool, ...]) -> None:
        self._store = store
        self._pools = pools
        self._inventory: tuple[int, Inventory] = (-1, Inventory())
        self._claims: tuple[int, Claims | None] = (-1, None)

    def observe(self, key: Key) -> Observed | None:
        """Everything that decides about this QwenDeployment; None when it does not exist."""
        deployment = self._store.get(QWENDEPLOYMENTS, key)
        if deployment is None:
            return None
        meta, spec = deployment["metadata"], deployment.get("spec") or {}
        name = meta["name"]
        revision = revision_hash(spec, meta.get("annotations") or {})
        replicas = spec.get("replicas")
        wanted = min(replicas if isinstance(replicas, int) else 1, MAX_REPLICAS)
        pods = [engine_pod_name(name, revision, index) for index in range(wanted)]
        return Observed(
            deployment=deployment,
            pods=self._children(PODS, deployment, [*pods, inspection_pod_name(name, revision)]),
            services=self._children(SERVICES, deployment, [headless_service_name(name)]),
            revisions=self._children(CONTROLLER_REVISIONS, deployment, [controller_revision_name(name, revision)]),
            inventory=self._current_inventory(),
            lost_names=self._lost(key),
        )

    def _children(self, resource: Resource, deployment: Manifest, names: list[str]) -> tuple[Manifest, ...]:
        """Objects that name the deployment, and whatever has one of the names that it needs, in order of names."""
        namespace = deployment["metadata"]["namespace"]
        found = {key_of(item): item for item in self._store.related(resource, deployment)}
        for name in names:
            item = self._store.get(resource, (namespace, name))
            if item is not None:
                found[(namespace, name)] = item
        return tuple(found[key] for key in sorted(found))

    def _current_inventory(self) -> Inventory:
        generation = self._store.generation(NODES)
        if self._inventory[0] != generation:
            self._inventory = (generation, inventory(self._store.all(NODES), self._pools))
        return self._inventory[1]

    def _lost(self, key: Key) -> dict[str, str]:
        generation = self._store.generation(QWENDEPLOYMENTS)
        known = self._claims[1]
        if known is None or self._claims[0] != generation:
            known = claims(self._store.all(QWENDEPLOYMENTS))
            self._claims = (generation, known)
        return {lost.name: str(lost.owner) for lost in known.lost.get(DeploymentKey(*key), ())}
