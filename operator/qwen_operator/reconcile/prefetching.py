"""What is downloaded before engine pods need it: reads an observation for `replicas.prefetch`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_operator.actions.types import Action, Kind
from qwen_operator.api.spec import Spec
from qwen_operator.manifests.model_cache import claim_folder, node_folder
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.revisions import PinnedRevision, revision_metadata
from qwen_operator.reconcile.types import Course
from qwen_operator.replicas import quotas
from qwen_operator.replicas.cached_nodes import MOST_NODES, claim_has_model, known_nodes, remembered_places
from qwen_operator.replicas.draining import RolloutRules
from qwen_operator.replicas.fetch_attempts import attempts_of
from qwen_operator.replicas.groups import SortedReplicas
from qwen_operator.replicas.places import Place, need_of, places_of
from qwen_operator.replicas.prefetch import Downloads, Prefetch, endings, prefetch, wanted_downloads
from qwen_operator.replicas.rollout import pods_of_replica

_NO_CACHE = "spec.prefetch has no effect, because the model does not come from the chart's cache"
_NO_NODES = "spec.prefetch has no effect, because the operator may not read nodes and so cannot choose one"
_UNBOUND = (
    "spec.prefetch does nothing until the claim {name} is bound, because a pod without GPUs could bind it to a node "
    "without free GPUs: the first engine pod binds it"
)
_UNPINNED = (
    "spec.prefetch has no effect while the API server rejects the ControllerRevision, which counts the downloads"
)
_LOOK_SECONDS = 60.0


def prefetched(
    course: Course, replicas: SortedReplicas, rules: RolloutRules, needed: Sequence[Action] = ()
) -> Prefetch:
    """The decision for the running revision.

    `needed`: the next steps if no replica waits for a download. Their pods have the first claim on the quotas.
    """
    observed, running = course.observed, rules.starts or course.running
    if not course.spec.prefetch or running is None:
        return Prefetch(actions=endings(observed.fetch_pods))
    claim, folder = claim_folder(running.template)[0], node_folder(running.template)
    useless = _NO_NODES if folder and observed.neighbours is None else "" if claim or folder else _NO_CACHE
    if useless:
        return Prefetch(actions=endings(observed.fetch_pods), useless=useless)
    if _is_unpinned(course, running):
        return Prefetch(actions=endings(observed.fetch_pods), useless=_UNPINNED)
    engines, _ = quotas.within_quotas(needed, observed.quotas, course.actions)
    _, lacking = quotas.within_quotas(needed, quotas.without_devices(observed.quotas), course.actions)
    if lacking:
        # The replica starts sooner if these pods go.
        return Prefetch(actions=endings(observed.fetch_pods))
    given = _downloads(course, running, replicas, rules)
    # While a change is blocked or held back, what runs has its model already.
    wanted = wanted_downloads(given) if running is course.target else ()
    if wanted and claim and not _bound(course, claim):
        useless = _UNBOUND.format(name=claim)
        return Prefetch(actions=endings(observed.fetch_pods), useless=useless, waits=(_LOOK_SECONDS,))
    created, _ = quotas.within_quotas(wanted, observed.quotas, (*course.actions, *engines))
    return prefetch(given, [one for one in wanted if one in created], observed.refusal)


def _downloads(course: Course, running: PinnedRevision, replicas: SortedReplicas, rules: RolloutRules) -> Downloads:
    observed = course.observed
    pods = (*observed.engine_pods, *observed.fetch_pods)
    revisions, readable = observed.revisions.owned, observed.readable
    first = pods_of_replica(observed.owner, running, rules)[0]
    remembered = [*remembered_places(running, revisions, readable)]
    places: dict[str, Place | None] = {}
    if claim := claim_folder(running.template)[0]:
        # One pod fills it for all nodes. If no node can run an engine now, an engine pod must make one come.
        places = {"": None} if _usable(course, first) or observed.neighbours is None else {}
        known = [""] if claim_has_model(running, revisions, readable, pods) else []
        remembered = [""] if claim in remembered else []
    else:
        places = dict(_usable(course, first))
        known = [*known_nodes(running, revisions, readable, pods)]
    own = observed.pods
    return Downloads(
        owner=observed.owner,
        running=running,
        places=places,
        known=known,
        remembered=remembered,
        most=_most(course.spec, running.plan.nodes_per_replica),
        need=need_of(first),
        pods=observed.fetch_pods,
        taken={*own.owned, *own.leftover, *own.foreign},
        now=course.now,
        attempts=attempts_of(stored_revision(course, running), remembered),
        looking=sum(not (replica.bound or replica.started or replica.broken) for replica in replicas.fresh),
        distinct_nodes=course.config.distinct_nodes,
        counted=bool(stored_revision(course, running)),
    )


def _bound(course: Course, claim: str) -> bool:
    """Whether the claim is known to be bound. Its first pod would decide about the node of its volume."""
    seen = course.observed.cache_claim
    return seen is not None and seen.name == claim and seen.bound


def _is_unpinned(course: Course, running: PinnedRevision) -> bool:
    """Whether the API server has rejected the ControllerRevision. That may last for ever, and engines need none."""
    name = revision_metadata(course.observed.owner, running.revision)["name"]
    refusal = course.observed.refusal
    rejected = refusal is not None and (refusal.kind, refusal.name) == (Kind.CONTROLLER_REVISION, name)
    return rejected and not stored_revision(course, running)


def stored_revision(course: Course, running: PinnedRevision) -> Manifest:
    """The ControllerRevision; empty if it is not made yet."""
    return course.observed.revisions.owned.get(revision_metadata(course.observed.owner, running.revision)["name"], {})


def _usable(course: Course, pod: dict[str, object]) -> dict[str, Place]:
    """The nodes on which the scheduler may place such an engine pod, and that offer enough GPUs, free or not."""
    observed, need = course.observed, need_of(pod)
    if observed.neighbours is None:
        return {}
    return {
        place.name: place
        for place in places_of(observed.neighbours)
        if place.suits(need) and place.offered.get(need.resource, 0) >= need.gpus
        if place.name not in observed.nodes.cordoned
    }


def _most(spec: Spec, pods: int) -> int:
    """On how many nodes replicas can be at the same time: one each, or more if a replica has several pods."""
    scaling = spec.scaling
    limits = [scaling.max_replicas, *(one.max_replicas or 0 for one in scaling.schedules)] if scaling else [1]
    return min(MOST_NODES, (spec.replicas or max(limits)) * pods)
