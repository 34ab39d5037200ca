"""Which adapters are downloaded while engines serve: reads an observation for `replicas.adapter_downloads`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_operator.actions.types import Action
from qwen_operator.manifests.cached_adapters import shares_adapters
from qwen_operator.manifests.names import ANNOTATION_ADAPTER_PODS
from qwen_operator.manifests.revisions import PinnedRevision, revision_metadata
from qwen_operator.reconcile.types import Course
from qwen_operator.replicas import quotas
from qwen_operator.replicas.adapter_downloads import (
    AdapterDownloads,
    Wanted,
    adapter_downloads,
    keys,
    missing_places,
    possible_places,
    wanted_pods,
)
from qwen_operator.replicas.fetch_attempts import attempts_of
from qwen_operator.replicas.groups import SortedReplicas


def adapters_fetched(course: Course, replicas: SortedReplicas, steps: Sequence[Action]) -> AdapterDownloads:
    """The decision for the running revision. The pods of `steps` have the first claim on the quotas."""
    observed, running = course.observed, course.running
    if running is None or not (observed.adapter_pods or shares_adapters(running.template)):
        return AdapterDownloads()
    given = _wanted(course, running, replicas)
    wanted = wanted_pods(given)
    created, full = quotas.within_quotas(wanted, observed.quotas, (*course.actions, *steps))
    return adapter_downloads(given, [one for one in wanted if one in created], full)


def _wanted(course: Course, running: PinnedRevision, replicas: SortedReplicas) -> Wanted:
    observed = course.observed
    possible = possible_places(replicas.serving, running)
    name = revision_metadata(observed.owner, running.revision)["name"]
    stored, own = observed.revisions.owned.get(name, {}), observed.pods
    return Wanted(
        owner=observed.owner,
        running=running,
        possible=possible,
        missing=missing_places(replicas.serving, running, observed.adapter_pages),
        pods=observed.adapter_pods,
        taken={*own.owned, *own.leftover, *own.foreign},
        now=course.now,
        attempts=attempts_of(stored, keys(possible), ANNOTATION_ADAPTER_PODS),
        counted=bool(stored),
    )
