"""Reads the PersistentVolumeClaim whose files are to be inspected, or that spec.prefetch is to fill."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from qwen_operator import objects
from qwen_operator.api import uris
from qwen_operator.api.spec import revision_hash
from qwen_operator.kube import PERSISTENT_VOLUME_CLAIMS, ApiError, KubeApi
from qwen_operator.manifests.model_cache import claim_folder
from qwen_operator.manifests.revisions import PinnedRevision, UnreadableRevisionError
from qwen_operator.planning.types import CacheType, ModelCache
from qwen_operator.reconcile.types import Observed
from qwen_operator.replicas.cached_nodes import remembered_places
from qwen_operator.sources.scheme import VolumeClaim

KEPT_SECONDS = 5.0
_OF_ONE_NODE = ("ReadWriteOnce", "ReadWriteOncePod")


@dataclass(slots=True)
class VolumeClaims:
    """One request for each claim, and only while an inspection may depend on it. `clock` returns monotonic seconds."""

    kube: KubeApi
    clock: Callable[[], float] = monotonic
    _known: dict[objects.ObjectKey, tuple[float, VolumeClaim | None]] = field(default_factory=dict)

    async def of(self, observed: Observed) -> VolumeClaim | None:
        """The claim with files to inspect; None if it is not needed, does not exist or cannot be read."""
        return await self._claim(observed, _claim_name(observed))

    async def of_cache(self, observed: Observed, cache: ModelCache | None) -> VolumeClaim | None:
        """The claim that spec.prefetch is to fill; None as for `of`. `cache`: that of new revisions."""
        return await self._claim(observed, _cache_name(observed, cache))

    async def _claim(self, observed: Observed, name: str) -> VolumeClaim | None:
        if not name:
            return None
        key, now = (observed.owner.namespace, name), self.clock()
        self._known = {known: entry for known, entry in self._known.items() if now - entry[0] < KEPT_SECONDS}
        if key not in self._known:
            self._known[key] = (now, await self._read(*key))
        return self._known[key][1]

    async def _read(self, namespace: str, name: str) -> VolumeClaim | None:
        try:
            claim = await self.kube.get(PERSISTENT_VOLUME_CLAIMS, namespace, name)
        except ApiError:
            return None
        bound = objects.text(claim, "status", "phase") == "Bound"
        modes = objects.mapping(claim, "spec").get("accessModes")
        return VolumeClaim(name, bound, objects.text(claim, "spec", "storageClassName"), _single_node(modes))


def _single_node(modes: object) -> str:
    """The access mode if all of them allow one node only, else ""."""
    known = [str(mode) for mode in modes[:4]] if isinstance(modes, list) else []
    return known[0] if known and all(mode in _OF_ONE_NODE for mode in known) else ""


def _claim_name(observed: Observed) -> str:
    """The claim of a spec without a pinned revision; "" if there is none."""
    uri = objects.text(observed.deployment, "spec", "source", "uri")
    if not uri.startswith(uris.PVC.prefix) or _pinned(observed) is not None:
        return ""
    return uri.removeprefix(uris.PVC.prefix).partition("/")[0]


def _cache_name(observed: Observed, cache: ModelCache | None) -> str:
    """The claim that is the cache of the spec and of which nobody noted that it has the model; "" if there is none."""
    if objects.mapping(observed.deployment, "spec").get("prefetch") is not True:
        return ""
    pinned = _pinned(observed)
    if not isinstance(pinned, PinnedRevision):
        return cache.place if cache is not None and cache.type is CacheType.CLAIM else ""
    name, _ = claim_folder(pinned.template)
    return "" if name in remembered_places(pinned, observed.revisions.owned, observed.readable) else name


def _pinned(observed: Observed) -> PinnedRevision | UnreadableRevisionError | None:
    spec = objects.mapping(observed.deployment, "spec")
    return observed.pinned.get(revision_hash(spec, objects.annotations(observed.deployment)))
