"""Reads the PersistentVolumeClaim whose files are to be inspected."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from qwen_operator import objects
from qwen_operator.api import uris
from qwen_operator.api.spec import revision_hash
from qwen_operator.kube import PERSISTENT_VOLUME_CLAIMS, ApiError, KubeApi
from qwen_operator.reconcile.types import Observed
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
        """The claim; None if it is not needed, does not exist or cannot be read."""
        name = _claim_name(observed)
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
    spec = objects.mapping(observed.deployment, "spec")
    uri = objects.text(spec, "source", "uri")
    if not uri.startswith(uris.PVC.prefix):
        return ""
    if revision_hash(spec, objects.annotations(observed.deployment)) in observed.pinned:
        return ""
    return uri.removeprefix(uris.PVC.prefix).partition("/")[0]
