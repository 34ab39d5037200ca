"""The decision: what was observed in, actions and status out.

Pure: no clock, no I/O, no randomness. The same observation gives the same decision, so a process that dies between
any two writes is followed by one that goes on where it stopped, and one that finds everything done writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from qwen_operator.actions.events import resizing, stamp_of, transition_event
from qwen_operator.actions.types import (
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
from qwen_operator.api.conditions import Reason
from qwen_operator.api.events import transitions
from qwen_operator.api.spec import InvalidSpec, Spec, parse, revision_hash
from qwen_operator.api.writers import replicas_writer
from qwen_operator.config import Config
from qwen_operator.manifests.names import (
    LABEL_ROLE,
    Manifest,
    Owner,
    PodIdentity,
    budget_name,
    controller_revision_name,
    inspection_pod_name,
)
from qwen_operator.manifests.pods import engine_template, same_template
from qwen_operator.planning.plan import plan, runnable
from qwen_operator.planning.types import NoFit
from qwen_operator.reconcile import revisions as children
from qwen_operator.replicas.draining import Orders, overdue, overdue_notice, waits
from qwen_operator.replicas.groups import Fleet, fleet_of
from qwen_operator.replicas.pod_state import PodState, read
from qwen_operator.replicas.quotas import granted
from qwen_operator.replicas.rollout import Moves, moves, pod_repairs
from qwen_operator.replicas.scaling_view import size
from qwen_operator.replicas.waiting import explained
from qwen_operator.replicas.wanted import Report, report
from qwen_operator.sources import inspection, registry
from qwen_operator.sources.scheme import Facts, SourceContext
from qwen_operator.status.conditions import Situation, all_lost, invalid_status, status


def decide(observed: Observed, config: Config, now: datetime) -> Decision:
    """What to do about one QwenDeployment; `now` is timezone-aware."""
    deployment, stamp = observed.deployment, stamp_of(now)
    states = engine_states(observed, now)
    try:
        spec = parse(deployment)
    except InvalidSpec as error:
        fleet = fleet_of(states, "", observed.nodes)
        return _concluded(observed, (), invalid_status(deployment, error, fleet, stamp), stamp)
    course = _course(spec, states, observed, config, now)
    actions, blocked_names = _actions(observed, course)
    actions, full = granted(actions, observed.quotas)
    situation = Situation(
        spec=spec,
        revision=course.revision,
        target=course.target if isinstance(course.target, Target) else None,
        blocked=_without_room(course.target, actions, full) if isinstance(course.target, Blocked) else None,
        running=course.running,
        fleet=course.fleet,
        orders=course.orders,
        report=course.report,
        foreign=_foreign(observed, blocked_names),
        lost_names=observed.lost_names,
        refusal=observed.refusal,
        full=full,
        newer=course.revision in course.pinned and _newer(spec, course.pinned[course.revision], observed, config),
    )
    decision = _concluded(observed, actions, status(deployment, situation, stamp), stamp)
    ask = course.target.ask if isinstance(course.target, Blocked) else None
    return replace(decision, requeue_after=_requeue_after(course), ask=ask)


def _course(spec: Spec, states: Sequence[PodState], observed: Observed, config: Config, now: datetime) -> "_Course":
    deployment = observed.deployment
    revision = revision_hash(deployment["spec"], deployment["metadata"].get("annotations") or {})
    pinned, unreadable = _pinned(children.own_revisions(observed))
    target = pinned.get(revision) or unreadable.get(revision) or _find(spec, revision, observed, config, now)
    running = target if isinstance(target, Target) else _last_served(deployment, pinned)
    told = tuple(explained(state, observed, running) for state in states)
    fleet = fleet_of(told, running.revision if running else "", observed.nodes)
    said = report(spec, observed.scaling, replicas_writer(deployment["metadata"]), _held(deployment, fleet))
    orders = Orders(
        deployment=deployment,
        wanted=said.wanted,
        drain_seconds=spec.rollout.drain_seconds,
        startup_seconds=running.plan.startup_seconds if running else 0,
        now=now,
        scaling=observed.scaling,
        nodes=observed.nodes,
    )
    unasked = all_lost(spec, observed.lost_names)
    return _Course(revision, target, running, pinned, told, fleet, orders, said, unasked)


def _held(deployment: Manifest, fleet: Fleet) -> int:
    """The number of replicas that exist, for as long as nothing is known about the load."""
    shown = size(deployment)
    return fleet.replicas(len(fleet.serving) if shown is None else shown)


def _without_room(blocked: Blocked, actions: Sequence[Action], full: str | None) -> Blocked:
    """The same, but for an inspection that waits for room in a quota."""
    stopped = any(isinstance(action, Create) and action not in actions for action in blocked.actions)
    if full is None or not stopped or not blocked.waiting:
        return blocked
    return replace(blocked, reason=Reason.QUOTA_EXCEEDED, message=full)


def _requeue_after(course: "_Course") -> float | None:
    """Seconds until time alone changes the decision."""
    blocked = course.target.requeue_after if isinstance(course.target, Blocked) else None
    waiting = [blocked, *(state.settles_in for state in course.states), *waits(course.fleet, course.orders)]
    return min((seconds for seconds in waiting if seconds), default=None)


def _last_served(deployment: Manifest, pinned: Mapping[str, Target]) -> Target | None:
    """The revision that the status speaks of. Numbers do not move when a spec is taken back to an earlier one."""
    shown = ((deployment.get("status") or {}).get("plan") or {}).get("hash")
    return pinned.get(str(shown)) or max(pinned.values(), key=lambda one: one.number, default=None)


def _concluded(observed: Observed, actions: tuple[Action, ...], new: Manifest, stamp: str) -> Decision:
    old = (observed.deployment.get("status") or {}).get("conditions") or ()
    events = tuple(transition_event(observed.deployment, event, stamp) for event in transitions(old, new["conditions"]))
    return Decision(actions, new, (*events, *resizing(observed.deployment, new, stamp)))


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
    facts = _facts(spec, revision, observed, config, now)
    if isinstance(facts, Blocked):
        return facts
    checkpoint = facts.checkpoint
    source = registry.engine_source(spec, checkpoint, config.engine)
    planned = runnable(plan(spec, checkpoint, observed.inventory, config.engine, source), checkpoint)
    if isinstance(planned, NoFit):
        message = f"{planned.message}; {facts.remark}" if facts.remark else planned.message
        return Blocked(planned.reason, message, waiting=False, facts=checkpoint, no_fit=planned, ask=facts.ask)
    if facts.pending is not None:
        return facts.pending
    if facts.remark:
        planned = replace(planned, warnings=(*planned.warnings, facts.remark))
    numbers = [int(item.get("revision") or 0) for item in children.own_revisions(observed).values()]
    template = engine_template(PodIdentity(_owner(observed), revision), spec, planned, source, config.image)
    return Target(revision, max(numbers, default=0) + 1, checkpoint, planned, children.plain(template))


def _facts(spec: Spec, revision: str, observed: Observed, config: Config, now: datetime) -> Facts | Blocked:
    name = inspection_pod_name(observed.deployment["metadata"]["name"], revision)
    context = SourceContext(
        spec=spec,
        revision=revision,
        deployment=observed.deployment,
        defaults=config.engine,
        runtime=config.image,
        inventory=observed.inventory,
        online=config.hub_lookup,
        now=now,
        inspection=next((pod for pod in observed.pods if pod["metadata"]["name"] == name), None),
        answer=observed.hub,
    )
    return registry.resolve(context)


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
    states: tuple[PodState, ...]
    fleet: Fleet
    orders: Orders
    report: Report
    unasked: bool


def _actions(observed: Observed, course: _Course) -> tuple[tuple[Action, ...], tuple[str, ...]]:
    """What to do, in order, and names that are needed but belong to others."""
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
    steps = _moves(owner, observed, course)
    if running is not None:
        first += [*_budget(owner, observed, course), *steps.first]
    repairs = pod_repairs(owner, known, course.states, course.orders.drain_seconds)
    first += [*children.revision_repairs(owner, pinned, manifests), *repairs]
    last = [*steps.last, *inspection.leftovers(observed, owner.name, revision, pinned=isinstance(target, Target))]
    in_use = {revision, *(state.revision for state in course.states), *([running.revision] if running else [])}
    last += children.obsolete(manifests, in_use)
    ordered = (*(action for action in first if not _removes(action)), *(a for a in first if _removes(a)), *last)
    return ordered, steps.blocked


def _moves(owner: Owner, observed: Observed, course: _Course) -> Moves:
    if course.running is None:
        return Moves()
    ours = {state.name for state in course.states}
    taken = [pod["metadata"]["name"] for pod in observed.pods if pod["metadata"]["name"] not in ours]
    steps = moves(owner, course.running, course.fleet, course.orders, taken)
    if not course.unasked:
        return steps
    return replace(steps, first=tuple(action for action in steps.first if not isinstance(action, Create)))


def _budget(owner: Owner, observed: Observed, course: _Course) -> tuple[Action, ...]:
    """All wanted replicas must stay, because a cordoned node's are replaced before anybody may evict them; but where
    that does not succeed in time, a drain of the node goes on without. Where nodes may not be read no cordon is seen:
    then one may be evicted at a time, or a drain would never end."""
    wanted = course.orders.wanted
    if not observed.nodes.names:
        return children.budget_actions(owner, observed, max(0, wanted - 1))
    late = overdue(course.fleet, course.orders)
    if not late:
        return children.budget_actions(owner, observed, wanted)
    # One at a time, also where several are late.
    others = sum(state.ready for state in course.fleet.serving if state is not late[0])
    told = overdue_notice(late[0], course.orders)
    return children.budget_actions(owner, observed, min(wanted, others), told)


def _removes(action: Action) -> bool:
    return isinstance(action, Delete)


def _foreign(observed: Observed, blocked: Sequence[str]) -> tuple[str, ...]:
    """Sentences about objects under names that we need now; `blocked` are those of pods."""
    name = observed.deployment["metadata"]["name"]
    needed = (
        (Kind.POD_DISRUPTION_BUDGET, observed.budgets, {budget_name(name)}),
        (Kind.POD, observed.pods, set(blocked)),
    )
    return tuple(
        inspection.foreign_message(kind, item["metadata"]["name"])
        for kind, items, names in needed
        for item in items
        if item["metadata"]["name"] in names and _strange(item, observed)
    )


def _strange(child: Manifest, observed: Observed) -> bool:
    return standing(child, observed.deployment) is Standing.FOREIGN


def _newer(spec: Spec, target: Target, observed: Observed, config: Config) -> bool:
    """Whether the same spec, planned today, would run differently."""
    source = registry.engine_source(spec, target.facts, config.engine)
    today = runnable(plan(spec, target.facts, observed.inventory, config.engine, source), target.facts)
    if isinstance(today, NoFit):
        return False
    template = engine_template(PodIdentity(_owner(observed), target.revision), spec, today, source, config.image)
    return not same_template(children.plain(template), target.template)


def _owner(observed: Observed) -> Owner:
    meta = observed.deployment["metadata"]
    return Owner(meta["name"], meta["namespace"], meta["uid"])
