"""Finds objects of other owners with names that the operator needs. Pure."""

from __future__ import annotations

from collections.abc import Collection

from qwen_operator.actions.blocked import ForeignObject
from qwen_operator.actions.types import Kind
from qwen_operator.manifests.ownership import is_former
from qwen_operator.reconcile.types import Observed


def foreign_objects(observed: Observed, needed: Collection[tuple[Kind, str]]) -> tuple[ForeignObject, ...]:
    """The foreign objects among the needed names, which are (kind, name).

    If there is one, the result also has everything else that an earlier QwenDeployment of this name left behind: users
    should see all of it at once.
    """
    places = (
        (Kind.CONTROLLER_REVISION, observed.revisions.foreign),
        (Kind.POD_DISRUPTION_BUDGET, observed.budgets.foreign),
        (Kind.POD, observed.pods.foreign),
    )
    every = [
        ForeignObject(kind, name, is_former(item, observed.deployment))
        for kind, items in places
        for name, item in sorted(items.items())
    ]
    blocking = [item for item in every if (item.kind, item.name) in needed]
    return tuple(item for item in every if item in blocking or item.former) if blocking else ()
