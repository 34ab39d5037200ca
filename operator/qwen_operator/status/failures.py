"""The last failure that the status shows: `status.lastFailure`. Pure."""

from collections.abc import Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.api.conditions import Reason
from qwen_operator.api.status import Failure
from qwen_operator.manifests.revisions import PinnedRevision
from qwen_operator.replicas.pod_state import last_failure, stored_failure
from qwen_operator.sources.inspection import PHASE
from qwen_operator.status.types import StatusInput


def reported_failure(given: StatusInput, old: Mapping[str, Any]) -> Failure | None:
    """The last failure of the present revision: of its inspection before it is pinned, of its engines afterwards.

    If a replica of whatever runs was not placed as a whole, that stays: it is the memory of when to try again.
    """
    if given.blocked is not None and given.blocked.failure is not None:
        return given.blocked.failure
    if given.unplaced is not None:
        return given.unplaced
    record = objects.mapping(old, "lastFailure")
    earlier = given.blocked is not None or (given.running is not None and given.running.revision != given.revision)
    if earlier and _not_placed(record, given.running):
        return stored_failure(record)
    if given.blocked is not None:
        return None
    inspection = record.get("phase") == PHASE
    of_revision = _of_revision(given, str(record.get("pod", ""))) and not inspection
    replicas = (*given.replicas.serving, *given.replicas.gone, *given.replicas.ended)
    pods = [pod for replica in replicas if replica.revision == given.revision for pod in replica.members]
    pods += given.prefetch.pods
    return last_failure(record if of_revision else {}, pods)


def _of_revision(given: StatusInput, pod: str) -> bool:
    """Whether a pod is of the present revision: by its name, or because it serves as that revision by now."""
    return f"-{given.revision}-" in pod or any(pod == replica.leader.name for replica in given.current)


def _not_placed(record: Mapping[str, Any], running: PinnedRevision | None) -> bool:
    """Whether the last failure is that a replica of this revision was not placed."""
    named = running is not None and f"-{running.revision}-" in str(record.get("pod", ""))
    return named and record.get("reason") == Reason.GROUP_NOT_PLACED
