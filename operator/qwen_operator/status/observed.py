"""What engines report of their start, beside what the plan predicted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.planning.engine import VOID
from qwen_operator.planning.types import Plan
from qwen_operator.replicas.groups import Replica
from qwen_operator.scaling.types import NOTHING_REPORTED, ScalingState

CLEARLY_LESS_PERCENT = 95
"""Below so many percent of the promised tokens, the plan does not match. The promise itself has a margin already."""
_GIB = 1 << 30
_MOST = 10**15
_LONGEST_START = 86_400


def observed(
    running: PinnedRevision | None, replicas: Iterable[Replica], scaling: ScalingState | None, old: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`status.observed`: the least favourable numbers of the replicas that run the revision and report them.

    `old` is the present status. Its numbers stay while no engine of the same revision can be read.
    """
    if running is None:
        return None
    known = scaling.reported if scaling else {}
    leaders = [replica.leader.uid for replica in replicas if replica.revision == running.revision]
    reports = [known[uid] for uid in leaders if uid in known and known[uid] != NOTHING_REPORTED]
    if not reports:
        return _kept(running.revision, objects.mapping(old, "observed"))
    numbers = {
        "kvTokens": min(_given(one.kv_tokens for one in reports), default=None),
        "weightBytes": max(_given(one.weight_bytes for one in reports), default=None),
        "freeMemoryBytes": min(_given(one.free_bytes for one in reports), default=None),
        "startupSeconds": max(_given(one.startup_seconds for one in reports), default=None),
    }
    return {"hash": running.revision, **{name: value for name, value in numbers.items() if value is not None}}


def startup_seconds(running: PinnedRevision | None, seen: Mapping[str, Any] | None) -> int:
    """How long a start takes: the plan's prediction, or what a start took if that is longer; 0 without a plan.

    `seen` is `status.observed`. It counts only if it is about this revision.
    """
    if running is None:
        return 0
    known = _kept(running.revision, seen or {}) or {}
    return max(running.plan.startup_seconds, min(int(known.get("startupSeconds", 0)), _LONGEST_START))


def promised(plan: Plan) -> int | None:
    """How many tokens the KV cache of an engine has at least, or None if options make the prediction void."""
    if plan.promised_tokens is not None:
        return plan.promised_tokens or None
    return None if any(warning.startswith(VOID) for warning in plan.warnings) else plan.kv_tokens


def mismatch(plan: Plan, seen: Mapping[str, Any] | None) -> Verdict | None:
    """Degraded, if an engine has room for clearly fewer tokens than promised. Both numbers are in the message."""
    right, has = promised(plan), (seen or {}).get("kvTokens")
    if right is None or has is None or has * 100 >= right * CLEARLY_LESS_PERCENT:
        return None
    void = next((warning.removeprefix(VOID) for warning in plan.warnings if warning.startswith(VOID)), "")
    why = f"these options change it: {void}" if void else "nvidia-smi on the node shows what else is on the GPU"
    text = f"an engine has room for {has} tokens of KV cache, but the plan promised {right}"
    return Verdict(ConditionType.DEGRADED, True, Reason.PLAN_MISMATCH, f"{text}{_memory(plan, seen or {})}; {why}")


def _memory(plan: Plan, seen: Mapping[str, Any]) -> str:
    """What the weights took, if that explains a part of it."""
    took = seen.get("weightBytes")
    if took is None or not plan.weight_bytes_per_rank or took <= plan.weight_bytes_per_rank:
        return ""
    return f"; weights take {took / _GIB:.1f} GiB of a GPU, planned were {plan.weight_bytes_per_rank / _GIB:.1f}"


def _given(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _kept(revision: str, old: Mapping[str, Any]) -> dict[str, Any] | None:
    """The numbers in the status, if they are of this revision."""
    if old.get("hash") != revision:
        return None
    names = ("kvTokens", "weightBytes", "freeMemoryBytes", "startupSeconds")
    numbers = {name: untrusted.whole(old.get(name), 0, _MOST, -1) for name in names}
    return {"hash": revision, **{name: number for name, number in numbers.items() if number >= 0}}
