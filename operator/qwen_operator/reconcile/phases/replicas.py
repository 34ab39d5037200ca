"""Decides how many replicas there should be, and the next steps towards that number. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwen_operator import objects
from qwen_operator.actions.blocked import foreign_message
from qwen_operator.actions.types import Action, Create, Delete, Kind
from qwen_operator.api.writers import replicas_writer
from qwen_operator.arbiter.asking import granted, number_of_new, size_after, takes_part, with_few_new
from qwen_operator.arbiter.types import Ask, Grant
from qwen_operator.manifests.model_cache import keeps_models
from qwen_operator.manifests.names import budget_name
from qwen_operator.reconcile.adapter_fetching import adapters_fetched
from qwen_operator.reconcile.foreign import foreign_objects
from qwen_operator.reconcile.prefetching import prefetched, stored_revision
from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas import quotas
from qwen_operator.replicas.adapters import notes, serving_as, starting_with
from qwen_operator.replicas.cached_nodes import known_nodes, preferring
from qwen_operator.replicas.draining import RolloutRules, waits
from qwen_operator.replicas.giving_back import NOTHING, Given, GivenBack, giving_back
from qwen_operator.replicas.groups import Replica, SortedReplicas, groups_of, sort_replicas
from qwen_operator.replicas.holding import Progress, progress_of
from qwen_operator.replicas.places import Neighbours
from qwen_operator.replicas.placing import Placing, place
from qwen_operator.replicas.pod_state import as_of
from qwen_operator.replicas.rollout import Moves, first_to_go, moves, pod_repairs, pods_of_replica
from qwen_operator.replicas.waiting import Cluster, explained, growth
from qwen_operator.replicas.wanted import SizeRule, WantedReplicas, last_wanted, size_rule, wanted_replicas
from qwen_operator.status.observed import startup_seconds


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The replicas that exist, and the number that is wanted.

    `course` has the revision that runs: the earlier one, if the present one does not come up in time.
    """

    course: Course
    existing: tuple[Replica, ...]
    replicas: SortedReplicas
    rule: SizeRule
    wanted: WantedReplicas
    rules: RolloutRules
    progress: Progress


def replicas(course: Course) -> Step:
    """Set the existing replicas and the wanted number, and add the next steps from the one to the other."""
    fleet = _fleet(course)
    course, rules = replace(fleet.course, given_back=_given_back(fleet)), fleet.rules
    placed = place(_to_be_placed(fleet.replicas), _placing(course))
    sorted_replicas = fleet.replicas.with_messages(placed.messages)
    needed = _moves(course, sorted_replicas, rules).actions if course.spec.prefetch else ()
    course = replace(course, prefetch=prefetched(course, sorted_replicas, rules, needed))
    if course.prefetch.first:
        # No replica goes before its successor can start.
        rules = replace(rules, max_unavailable=0)
    ask, rules, steps = _arbitrated(course, sorted_replicas, rules, fleet.rule)
    steps = _where_cached(course, steps)
    steps = replace(steps, actions=(*steps.actions, *_not_yet(course.given_back.actions, steps.actions)))
    proposed = _without_conflicts((*steps.actions, *_repairs(course, fleet.existing, rules)), placed.actions)
    actions, full = quotas.within_quotas(proposed, course.observed.quotas, course.actions)
    course = replace(course, downloads=adapters_fetched(course, sorted_replicas, actions))
    due = (
        *waits(sorted_replicas, rules),
        *fleet.progress.waits,
        *placed.waits,
        *fleet.rule.waits(course.now),
        course.given_back.wait,
        *course.prefetch.waits,
        *course.downloads.waits,
    )
    return Step(
        replace(
            course,
            replicas=sorted_replicas,
            wanted=fleet.wanted,
            rules=rules,
            unplaced=placed.failure,
            foreign=_foreign_message(course, steps.blocked),
            full=course.full or full,
            ask=ask,
            unread=placed.unread,
        ),
        (*actions, *course.prefetch.actions, *course.downloads.actions),
        requeue_after=_requeue_after(fleet.existing, due),
    )


def _fleet(course: Course) -> _Fleet:
    observed, running = course.observed, course.running
    found = _replicas(course)
    existing = serving_as(found, observed.readable, running)
    sorted_replicas = sort_replicas(existing, running.revision if running else "", observed.nodes)
    rule = size_rule(course.spec.replicas, course.spec.scaling, suspend=course.spec.suspend, now=course.now)
    wanted = _wanted(course, sorted_replicas, rule)
    rules = _rules(course, wanted.number)
    progress = progress_of(running, sorted_replicas, observed.readable, rules) if running else Progress()
    if hold := progress.hold:
        course = replace(course, running=hold.earlier, hold=hold)
        existing = serving_as(found, observed.readable, hold.earlier)
        sorted_replicas = sort_replicas(existing, hold.earlier.revision, observed.nodes, hold.names)
        rules = replace(rules, held=hold.revision)
    rules = replace(rules, starts=starting_with(course.running, observed.revisions.owned, observed.readable))
    return _Fleet(course, existing, sorted_replicas, rule, wanted, rules, progress)


def _given_back(fleet: _Fleet) -> GivenBack:
    """What becomes of new replicas whose model cannot be fetched. In a rollout, the earlier revision comes back."""
    course, running = fleet.course, fleet.course.running
    if running is None or fleet.progress.fallback:
        return NOTHING
    last = objects.mapping(course.observed.deployment, "status", "lastFailure")
    pods = [pod for pod in course.observed.fetch_pods if pod.revision == running.revision]
    keeps = keeps_models(running.template)
    return giving_back(Given(stored_revision(course, running), fleet.replicas, pods, last, course.now, keeps))


def _repairs(course: Course, existing: Sequence[Replica], rules: RolloutRules) -> Sequence[Action]:
    """The changes of pods that exist."""
    observed = course.observed
    pinned = {**observed.readable, **({course.revision: course.target} if course.target else {})}
    noted = notes(existing, pinned, course.running, observed.adapter_pages)
    return pod_repairs(observed.owner, pinned, existing, rules.drain_seconds, noted)


def _arbitrated(
    course: Course, replicas: SortedReplicas, rules: RolloutRules, rule: SizeRule
) -> tuple[Ask | None, RolloutRules, Moves]:
    """What the deployment asks of the arbiter, and the rules and steps within what it was granted."""
    steps, grant = _moves(course, replicas, rules), course.observed.grant
    ask = _ask(course, replicas, rules, rule, steps)
    if ask is None or grant is None or grant.unlimited:
        return ask, rules, steps
    rules = _limited(rules, grant, replicas)
    steps = _moves(course, replicas, rules)
    return ask, rules, replace(steps, actions=granted(steps.actions, grant, replicas))


def _to_be_placed(replicas: SortedReplicas) -> tuple[Replica, ...]:
    return (*replicas.fresh, *replicas.leaving, *replicas.held)


def _placing(course: Course) -> Placing:
    observed = course.observed
    plan = course.running.plan if course.running else None
    return Placing(
        namespace=observed.owner.namespace,
        now=course.now,
        neighbours=_neighbours(course),
        future_nodes=growth(observed.inventory, plan.gpu_product) if plan else 0,
        failure=objects.mapping(observed.deployment, "status", "lastFailure"),
    )


def _neighbours(course: Course) -> Neighbours | None:
    seen = course.observed.neighbours
    return None if seen is None else replace(seen, distinct_nodes=course.config.distinct_nodes)


def _without_conflicts(steps: tuple[Action, ...], placing: tuple[Action, ...]) -> tuple[Action, ...]:
    """All actions, one for each pod. A pod that is deleted needs nothing else, and its placing has time."""
    deleted = {action.name for action in (*steps, *placing) if isinstance(action, Delete)}
    kept = [action for action in steps if isinstance(action, Delete) or action.name not in deleted]
    taken = {action.name for action in kept if action.kind is Kind.POD}
    return (*kept, *(action for action in placing if action.name not in taken and _is_due(action, deleted)))


def _not_yet(actions: Iterable[Action], steps: Iterable[Action]) -> Iterator[Action]:
    """The actions without deletions of pods that the steps delete too."""
    deleted = {action.name for action in steps if isinstance(action, Delete)}
    return (action for action in actions if not isinstance(action, Delete) or action.name not in deleted)


def _is_due(action: Action, deleted: Collection[str]) -> bool:
    return isinstance(action, Delete) or action.name not in deleted


def _rules(course: Course, wanted: int) -> RolloutRules:
    observed, rollout = course.observed, course.spec.rollout
    return RolloutRules(
        deployment=observed.deployment,
        wanted=wanted,
        drain_seconds=rollout.drain_seconds,
        startup_seconds=startup_seconds(course.running, objects.mapping(observed.deployment, "status", "observed")),
        now=course.now,
        scaling=observed.scaling,
        nodes=observed.nodes,
        allow_one=course.spec.disruption.allows_one,
        max_surge=rollout.max_surge,
        max_unavailable=rollout.max_unavailable,
        deadline_seconds=rollout.progress_deadline_seconds,
        distinct_nodes=course.config.distinct_nodes,
    )


def _limited(rules: RolloutRules, grant: Grant, replicas: SortedReplicas) -> RolloutRules:
    """The rules with what the arbiter leaves of the GPUs. Others get the places of the replicas in `grant.drains`."""
    yields = frozenset(grant.drains) & {replica.name for replica in replicas.serving}
    rules = replace(rules, yields=yields, returns=frozenset(grant.returns))
    if not yields:
        return rules
    # A rollout takes no more replicas away meanwhile.
    return replace(rules, wanted=min(rules.wanted, len(replicas.serving) - len(yields)), max_unavailable=0)


def _ask(course: Course, replicas: SortedReplicas, rules: RolloutRules, rule: SizeRule, steps: Moves) -> Ask | None:
    """What the deployment would have if nobody limited it; None if the arbiter does not decide about it."""
    running, observed = course.running, course.observed
    if observed.grant is None or running is None or growth(observed.inventory, running.plan.gpu_product):
        return None
    pods = pods_of_replica(observed.owner, running, rules)
    if not takes_part(pods[0]):
        return None
    possible, _ = quotas.within_quotas(steps.actions, observed.quotas, course.actions)
    wanted, creates = size_after(possible, replicas)
    order = tuple(replica.name for replica in first_to_go(replicas.serving, rules))
    return Ask(observed.owner.uid, wanted, rule.least, pods[0], len(pods), order, creates)


def _replicas(course: Course) -> tuple[Replica, ...]:
    cluster = Cluster(
        course.observed.nodes,
        course.observed.inventory,
        course.running.plan.gpu_product if course.running else "",
    )
    states = (explained(as_of(state, course.now), cluster) for state in course.observed.engine_pods)
    return groups_of(states, course.observed.pods_of_revisions)


def _wanted(course: Course, sorted_replicas: SortedReplicas, rule: SizeRule) -> WantedReplicas:
    """The wanted number. If the load should decide but is unknown, it is the number of existing replicas."""
    deployment, rollout = course.observed.deployment, course.spec.rollout
    shown = last_wanted(deployment)
    existing = sorted_replicas.count(len(sorted_replicas.serving) if shown is None else shown, rollout.max_surge)
    if shown is not None:
        # A rollout may have removed so many before their successors exist.
        existing = max(existing, min(shown, existing + rollout.max_unavailable))
    return wanted_replicas(rule, course.observed.scaling, replicas_writer(deployment["metadata"]), existing)


def _moves(course: Course, sorted_replicas: SortedReplicas, rules: RolloutRules) -> Moves:
    if course.running is None:
        return Moves()
    ours = {state.name for state in course.observed.engine_pods}
    pods = course.observed.pods
    taken = {*pods.owned, *pods.leftover, *pods.foreign} - ours
    steps = moves(course.observed.owner, course.running, sorted_replicas, rules, taken)
    new = number_of_new(steps.actions, sorted_replicas)
    allowed = new - course.prefetch.holds(new)
    if course.given_back.new is not None:
        allowed = min(allowed, course.given_back.new)
    few = with_few_new(steps.actions, sorted_replicas, allowed)
    steps = replace(steps, actions=few)
    if not course.unreachable:
        return steps
    return replace(steps, actions=tuple(action for action in steps.actions if not isinstance(action, Create)))


def _where_cached(course: Course, steps: Moves) -> Moves:
    """The steps with new pods that prefer nodes whose cache has the model."""
    observed = course.observed
    pods = (*observed.engine_pods, *observed.fetch_pods)
    nodes = known_nodes(course.running, observed.revisions.owned, observed.readable, pods)
    return replace(steps, actions=preferring(steps.actions, nodes))


def _foreign_message(course: Course, blocked: tuple[str, ...]) -> str:
    """The message about objects of other owners with names that the operator needs now; "" if there are none.

    `blocked` are names of pods.
    """
    needed = [(Kind.POD, name) for name in blocked]
    budget = (Kind.POD_DISRUPTION_BUDGET, budget_name(course.observed.owner.name))
    foreign = foreign_objects(course.observed, (*needed, budget))
    return foreign_message(foreign, course.observed.deployment) if foreign else ""


def _requeue_after(replicas: tuple[Replica, ...], waiting: tuple[float, ...]) -> float | None:
    """Seconds until time alone changes the decision."""
    times = [*(replica.settles_in or replica.rests_in for replica in replicas), *waiting]
    return min((seconds for seconds in times if seconds), default=None)
