"""The PodDisruptionBudgets of a deployment's replicas. Pure.

One selects the pods that lead their replica. If replicas have more pods, another one selects these. Whoever evicts one
pod of a replica ends all of it, so the second budget is as strict as the first.
"""

from __future__ import annotations

from qwen_operator import objects
from qwen_operator.actions.types import Action, ActionReason, Create, Kind, Patch
from qwen_operator.manifests.drift import is_owned, subset
from qwen_operator.manifests.kept import CUT
from qwen_operator.manifests.names import Manifest, Owner
from qwen_operator.manifests.objects import disruption_budget, worker_disruption_budget
from qwen_operator.manifests.ownership import Children
from qwen_operator.replicas.draining import RolloutRules, overdue, overdue_event
from qwen_operator.replicas.groups import SortedReplicas


def budget_actions(
    owner: Owner, budgets: Children, replicas: SortedReplicas, rules: RolloutRules
) -> tuple[Action, ...]:
    """Create the budget, or correct it.

    The budget protects all wanted replicas, because the operator replaces a replica on a cordoned node before anybody
    may evict it. If the replacement is not ready in time, the budget allows the eviction, so that a drain of the node
    can end. If the operator may not read nodes, it sees no cordon. Then the budget always allows one eviction at a
    time. Otherwise a drain would never end. With the policy AllowOne it always does so, too: node autoscalers such as
    Karpenter never touch a node whose pods no one may evict.
    """
    if rules.allow_one or not rules.nodes.names:
        return _actions(budgets, disruption_budget(owner, max(0, rules.wanted - 1)))
    late = overdue(replicas, rules)
    if not late:
        return _actions(budgets, disruption_budget(owner, rules.wanted))
    # Allow one eviction at a time, even if several replicas are late.
    others = sum(replica.ready for replica in replicas.serving if replica is not late[0])
    budget = disruption_budget(owner, min(rules.wanted, others))
    return _actions(budgets, budget, overdue_event(late[0], rules))


def worker_budget_actions(
    owner: Owner, budgets: Children, replicas: SortedReplicas, rules: RolloutRules, pods: int
) -> tuple[Action, ...]:
    """Create the budget of the other pods, or correct it. `pods`: how many pods a wanted replica has.

    A budget counts pods and not replicas. So it also counts those of replicas that drain: otherwise an eviction could
    hit a replica that serves instead.
    """
    protected = [replica for replica in (*replicas.serving, *replicas.draining) if replica.up]
    number = max(rules.wanted * (pods - 1), sum(replica.pods - 1 for replica in protected))
    if rules.allow_one or not rules.nodes.names:
        number -= 1
    elif late := overdue(replicas, rules):
        number -= late[0].pods - 1
    return _actions(budgets, worker_disruption_budget(owner, max(0, number)))


def _actions(budgets: Children, desired: Manifest, event: Manifest | None = None) -> tuple[Action, ...]:
    """Create or patch the budget. The operator posts `event` before it lowers the budget.

    A new budget must protect at least one replica. An existing budget stays even if it protects none. Otherwise every
    stop and start of a deployment would need two more writes.
    """
    name, min_available = desired["metadata"]["name"], desired["spec"]["minAvailable"]
    if name not in budgets:
        creation = Create(Kind.POD_DISRUPTION_BUDGET, desired, ActionReason.BUDGET_MISSING)
        return (creation,) if min_available else ()
    budget = budgets.owned.get(name)
    if budget is None or objects.is_deleting(budget):
        return ()
    meta = {part: desired["metadata"][part] for part in ("labels", "annotations")}
    spec = objects.mapping(budget, "spec")
    known = CUT in budget or subset(meta, budget["metadata"])
    if known and is_owned(desired, budget) and spec == desired["spec"]:
        return ()
    changed = spec.get("minAvailable") != min_available
    # The API server rejects maxUnavailable beside minAvailable, and replaces the selector as a whole.
    patch = {
        "metadata": {**meta, "ownerReferences": desired["metadata"]["ownerReferences"]},
        "spec": {**dict.fromkeys(set(spec) - set(desired["spec"])), **desired["spec"]},
    }
    reason = ActionReason.REPLICAS_CHANGED if changed else ActionReason.DRIFTED
    return (Patch(Kind.POD_DISRUPTION_BUDGET, name, patch, reason, event),)
