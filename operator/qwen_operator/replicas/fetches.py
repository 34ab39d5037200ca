"""Whether the starts of pods found their model in the cache, and how many bytes came from the hub. Pure.

The container that fetches says so in its termination message. It runs in the tenant's namespace, so its numbers are
bounded, and a wrong one harms only that tenant's status.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from qwen_operator import objects, untrusted
from qwen_operator.manifests.names import FETCH_CONTAINER
from qwen_operator.replicas.failures import exit_code
from qwen_operator.replicas.pod_state import PodState
from qwen_runtime.checkpoints.model import MAX_BYTES


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch that succeeded. `hub_bytes`: what its last run got from the hub; 0 if the cache had the model."""

    uid: str
    hub_bytes: int
    finished: datetime | None

    @property
    def hit(self) -> bool:
        """Whether nothing came from the hub."""
        return not self.hub_bytes


def fetches(pods: Iterable[PodState]) -> tuple[Fetched, ...]:
    """The fetches of these pods that succeeded."""
    found = (_fetched(pod) for pod in pods)
    return tuple(one for one in found if one is not None)


def in_words(done: Iterable[Fetched]) -> str:
    """What the column CACHE shows, such as "hit", "2 hits" or "1 hit, 15.2 GB"; "" if no pod fetched."""
    known = list(done)
    hits = sum(one.hit for one in known)
    loaded = sum(one.hub_bytes for one in known)
    parts = ["hit" if len(known) == hits == 1 else f"{hits} hit{'s' if hits > 1 else ''}"] if hits else []
    parts += [f"{loaded / 10**9:.1f} GB" if loaded >= 10**8 else f"{loaded / 10**6:.1f} MB"] if loaded else []
    return ", ".join(parts)


def _fetched(pod: PodState) -> Fetched | None:
    container = objects.named(objects.members(pod.manifest, "status", "initContainerStatuses"), FETCH_CONTAINER)
    ended = objects.mapping(container, "state", "terminated")
    if not ended or exit_code(ended) != 0:
        return None
    told = untrusted.report(ended.get("message"))
    # Earlier versions told only the bytes of the model, 0 if the cache had it.
    count = told.get("hubBytes", told.get("bytes"))
    return Fetched(pod.uid, untrusted.whole(count, 0, MAX_BYTES, 0), objects.moment(ended.get("finishedAt")))
