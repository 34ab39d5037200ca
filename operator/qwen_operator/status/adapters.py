"""Which adapters of a spec every replica that answers has, and why the others wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.adapters import Adapter
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.manifests.adapters import loaded_names
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.adapter_downloads import Told
from qwen_operator.replicas.adapters import obstacle
from qwen_operator.replicas.groups import Replica
from qwen_operator.replicas.wanted import WantedReplicas


@dataclass(frozen=True, slots=True)
class Loading:
    """The replicas that answer, and what keeps adapters from being asked for.

    `ready`: of any revision. `revision`: that of the present spec. `blocked`: why it has none. `failures`: why engines
    could not load adapters, by name. `downloads`: about those that are fetched for them, by name.
    """

    ready: Sequence[Replica]
    revision: str
    wanted: WantedReplicas
    blocked: Blocked | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    downloads: Mapping[str, Told] = field(default_factory=dict)


def adapters_status(adapters: Sequence[Adapter], loading: Loading) -> dict[str, Any] | None:
    """`status.adapters`; None for a spec without adapters."""
    if not adapters:
        return None
    loaded = [loaded_names(replica.leader.manifest) for replica in loading.ready]
    late = [one.name for one in adapters if not loaded or not all(one.name in names for names in loaded)]
    waiting = [{"name": name, "reason": str(_reason(name, loading))} for name in late]
    count = {"ready": len(adapters) - len(late), "total": len(adapters)}
    return {**count, **({"waiting": waiting} if waiting else {})}


def _reason(name: str, loading: Loading) -> Reason:
    blocked = loading.blocked
    if blocked is not None:
        about_another = "spec.adapters[" in blocked.message and f"spec.adapters[{name}]" not in blocked.message
        return Reason.PENDING if about_another else blocked.reason
    if loading.wanted.number == 0:
        return loading.wanted.reason
    if not loading.ready:
        return Reason.STARTING
    if name in loading.failures:
        return Reason.ADAPTER_NOT_LOADED
    if any(replica.revision != loading.revision for replica in loading.ready):
        return Reason.REPLACING
    return loading.downloads[name].reason if name in loading.downloads else Reason.LOADING


def not_loaded(failures: Mapping[str, str], downloads: Mapping[str, Told]) -> Verdict | None:
    """Degraded, if engines could not load adapters, or these could not be fetched for them."""
    if not failures:
        return _not_fetched({name: told for name, told in downloads.items() if told.fails})
    name, why = min(failures.items())
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    message = f"spec.adapters[{name}]{more}: {why}. The engine tries again every 30 s; all other names are served"
    return Verdict(ConditionType.DEGRADED, True, Reason.ADAPTER_NOT_LOADED, message)


def _not_fetched(failing: Mapping[str, Told]) -> Verdict | None:
    if not failing:
        return None
    name, more = min(failing), f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
    message = f"spec.adapters[{name}]{more}: {failing[name].message}. All other names are served"
    return Verdict(ConditionType.DEGRADED, True, failing[name].reason, message)


def why_replaced(target: PinnedRevision | None, old: PinnedRevision | None) -> str:
    """Why replicas of a revision that differs from the target only in adapters are replaced; "" if that is not so."""
    if target is None or old is None or not target.without_adapters:
        return ""
    return obstacle(old, target.facts) if old.without_adapters == target.without_adapters else ""
