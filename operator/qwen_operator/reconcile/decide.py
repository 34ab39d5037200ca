"""The decision: what was observed in, actions and status out.

Pure: no clock, no I/O, no randomness. The same observation gives the same decision, so a process that dies between
any two writes is followed by one that goes on where it stopped, and one that finds everything done writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import transitions
from qwen_operator.api.spec import InvalidSpec, Spec, parse, revision_hash
from qwen_operator.manifests.names import LABEL_ROLE, Manifest, Owner, controller_revision_name, headless_service_name
from qwen_operator.manifests.pods import engine_template
from qwen_operator.planning.plan import plan, runnable
from qwen_operator.planning.types import NoFit
from qwen_operator.reconcile import children, inspection
from qwen_operator.reconcile.config import Config
from qwen_operator.reconcile.model import (
    Action,
    Blocked,
    Create,
    Decision,
    Delete,
    Kind,
    Observed,
    Standing,
    Target,
    Why,
    standing,
)
from qwen_operator.reconcile.podstate import PodState, read
from qwen_operator.reconcile.replicas import pod_actions, pod_repairs
from qwen_operator.reconcile.verdicts import Situation, all_lost, event_manifest, invalid_status, status


def decide(observed: Observed, config: Config, now: datetime) -> Decision:
    """What to do about one QwenDeployment; `now` is timezone-aware."""
    deployment, stamp = observed.deployment, now.strftime("%Y-%m-%dT%H:%M:%SZ")
    states = engine_states(observed, now)
    try:
        spec = parse(deployment)
    except InvalidSpec as error:
        ready = sum(state.ready for state in states)
        return _concluded(observed, (), invalid_status(deployment, error, len(states), ready, stamp), stamp)
    revision = revision_hash(deployment["spec"], deployment["metadata"].get("annotations") or {})
    manifests = children.own_revisions(observed)
    pinned, unreadable = _pinned(manifests)
    target = pinned.get(revision) or unreadable.get(revision) or _find(spec, revision, observed, config, now)
    running = target if isinstance(target, Target) else _last_served(deployment, pinned)
    unasked = all_lost(spec, observed.lost_names)
    actions = _actions(observed, states, _Course(revision, target, running, pinned, spec.wanted_replicas, unasked))
    blocked = target if isinstance(target, Blocked) else None
    situation = Situation(
        spec=spec,
        revision=revision,
        target=target if isinstance(target, Target) else None,
        blocked=blocked,
        running=running,
        states=states,
        foreign=_foreign(observed, spec, revision),
        lost_names=observed.lost_names,
        refusal=observed.refusal,
        newer=revision in pinned and _newer(spec, pinned[revision], observed, config),
    )
    decision = _concluded(observed, actions, status(deployment, situation, stamp), stamp)
    waits = [blocked.requeue_after if blocked else None, *(state.settles_in for state in states)]
    return replace(decision, requeue_after=min((wait for wait in waits if wait), default=None))


def _last_served(deployment: Manifest, pinned: Mapping[str, Target]) -> Target | None:
    """The revision that the status speaks of. Numbers do not move when a spec is taken back to an earlier one."""
    shown = ((deployment.get("status") or {}).get("plan") or {}).get("hash")
    return pinned.get(str(shown)) or max(pinned.values(), key=lambda one: one.number, default=None)


def _concluded(observed: Observed, actions: tuple[Action, ...], new: Manifest, stamp: str) -> Decision:
    old = (observed.deployment.get("status") or {}).get("conditions") or ()
    events = tuple(event_manifest(observed.deployment, event, stamp) for event in transitions(old, new["conditions"]))
    return Decision(actions, new, events)


def engine_states(observed: Observed, now: datetime) -> tuple[PodState, ...]:
    """The engine pods that belong to the deployment, by name."""
    name = observed.deployment["metadata"]["name"]
    return tuple(
        read(pod, name, now)
        for pod in observed.pods
        if standing(pod, observed.deployment) is Standing.OURS and not _inspects(pod)
    )


def _inspects(pod: Manifest) -> bool:
    meta = pod["metadata"]
    return meta["name"].endswith("-inspect") or (meta.get("labels") or {}).get(LABEL_ROLE) == "inspection"


def _pinned(manifests: Mapping[str, Manifest]) -> tuple[dict[str, Target], dict[str, Blocked]]:
    pinned: dict[str, Target] = {}
    unreadable: dict[str, Blocked] = {}
    for revision, manifest in manifests.items():
        try:
            pinned[revision] = children.read_revision(revision, manifest)
        except children.UnreadableRevisionError as error:
            unreadable[revision] = Blocked(Reason.UNKNOWN, str(error), waiting=False)
    return pinned, unreadable


def _find(spec: Spec, revision: str, observed: Observed, config: Config, now: datetime) -> Target | Blocked:
    """Facts, then a plan, for a revision that is not pinned yet."""
    name = controller_revision_name(observed.deployment["metadata"]["name"], revision)
    for item in observed.revisions:
        if item["metadata"]["name"] == name:
            return _occupied(item, observed)
    facts = inspection.resolve(spec, revision, observed, config.image, now)
    if isinstance(facts, Blocked):
        return facts
    planned = runnable(plan(spec, facts, observed.inventory, config.engine), facts)
    if isinstance(planned, NoFit):
        return Blocked(planned.reason, planned.message, waiting=False, facts=facts, no_fit=planned)
    numbers = [int(item.get("revision") or 0) for item in children.own_revisions(observed).values()]
    template = engine_template(_owner(observed), revision, spec, planned, config.image)
    return Target(revision, max(numbers, default=0) + 1, facts, planned, children.plain(template))


def _occupied(item: Manifest, observed: Observed) -> Blocked:
    if standing(item, observed.deployment) is Standing.FOREIGN:
        return inspection.foreign(Kind.CONTROLLER_REVISION, item["metadata"]["name"])
    return Blocked(Reason.PENDING, f"waiting for {item['metadata']['name']} to be removed", waiting=True)


@dataclass(frozen=True, slots=True)
class _Course:
    """Where to go: the present revision's hash and target, the revision to run, what is pinned, how many replicas.

    Without a target, what served before the spec was changed goes on.
    `unasked`: nobody could ask for a new pod, so none is made; those that exist stay.
    """

    revision: str
    target: Target | Blocked
    running: Target | None
    pinned: Mapping[str, Target]
    wanted: int
    unasked: bool


def _actions(observed: Observed, states: Sequence[PodState], course: _Course) -> tuple[Action, ...]:
    owner, revision, target, pinned = _owner(observed), course.revision, course.target, course.pinned
    manifests = children.own_revisions(observed)
    first: list[Action] = []
    known, running = dict(pinned), course.running
    if isinstance(target, Blocked):
        first += target.actions
    else:
        known[revision] = target
        if revision not in pinned:
            first.append(Create(Kind.CONTROLLER_REVISION, children.revision_manifest(owner, target), Why.PIN_REVISION))
    last: list[Action] = []
    if running is not None:
        taken = [pod["metadata"]["name"] for pod in observed.pods]
        creations, deletions = pod_actions(owner, running, states, taken, course.wanted)
        first += [*children.service_actions(owner, observed), *([] if course.unasked else creations)]
        last += deletions
    first += [*children.revision_repairs(owner, pinned, manifests), *pod_repairs(owner, known, states)]
    last += inspection.leftovers(observed, owner.name, revision, pinned=isinstance(target, Target))
    in_use = {revision, *(state.revision for state in states), *([running.revision] if running else [])}
    last += children.obsolete(manifests, in_use)
    return (*(action for action in first if not _removes(action)), *(a for a in first if _removes(a)), *last)


def _removes(action: Action) -> bool:
    return isinstance(action, Delete)


def _foreign(observed: Observed, spec: Spec, revision: str) -> tuple[str, ...]:
    """Sentences about objects under names that we need now."""
    name = observed.deployment["metadata"]["name"]
    pods = {f"{name}-{revision}-{index}" for index in range(spec.wanted_replicas)}
    found = [
        (Kind.SERVICE, item["metadata"]["name"])
        for item in observed.services
        if item["metadata"]["name"] == headless_service_name(name) and _strange(item, observed)
    ]
    found += [
        (Kind.POD, item["metadata"]["name"])
        for item in observed.pods
        if item["metadata"]["name"] in pods and _strange(item, observed)
    ]
    return tuple(inspection.foreign_message(*item) for item in found)


def _strange(child: Manifest, observed: Observed) -> bool:
    return standing(child, observed.deployment) is Standing.FOREIGN


def _newer(spec: Spec, target: Target, observed: Observed, config: Config) -> bool:
    """Whether the same spec, planned today, would run differently."""
    today = runnable(plan(spec, target.facts, observed.inventory, config.engine), target.facts)
    if isinstance(today, NoFit):
        return False
    template = engine_template(_owner(observed), target.revision, spec, today, config.image)
    return bool(children.plain(template) != target.template)


def _owner(observed: Observed) -> Owner:
    meta = observed.deployment["metadata"]
    return Owner(meta["name"], meta["namespace"], meta["uid"])
