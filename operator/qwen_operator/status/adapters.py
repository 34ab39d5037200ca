"""Which adapters of a spec every replica that answers has, and why the others wait. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.adapters import Adapter
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.names import ANNOTATION_ADAPTERS
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.wanted import WantedReplicas


def adapters_status(
    adapters: Sequence[Adapter], ready: Sequence[Replica], wanted: WantedReplicas, blocked: Blocked | None
) -> dict[str, Any] | None:
    """`status.adapters`; None for a spec without adapters.

    `ready` are the replicas that answer, of any revision. `blocked`: why the present spec has no revision.
    """
    if not adapters:
        return None
    loaded = [_loaded(replica) for replica in ready]
    late = [one.name for one in adapters if not loaded or not all(one.name in names for names in loaded)]
    waiting = [{"name": name, "reason": str(_reason(name, ready, wanted, blocked))} for name in late]
    count = {"ready": len(adapters) - len(late), "total": len(adapters)}
    return {**count, **({"waiting": waiting} if waiting else {})}


def _loaded(replica: Replica) -> list[str]:
    return str(objects.annotations(replica.leader.manifest).get(ANNOTATION_ADAPTERS, "")).split(",")


def _reason(name: str, ready: Sequence[Replica], wanted: WantedReplicas, blocked: Blocked | None) -> Reason:
    if blocked is not None:
        about_another = "spec.adapters[" in blocked.message and f"spec.adapters[{name}]" not in blocked.message
        return Reason.PENDING if about_another else blocked.reason
    if wanted.number == 0:
        return wanted.reason
    return Reason.REPLACING if ready else Reason.STARTING
