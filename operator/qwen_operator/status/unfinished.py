"""Why the present spec is not completely in use yet. Pure."""

from collections.abc import Iterable

from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.refusals import explain
from qwen_operator.api.conditions import Reason
from qwen_operator.replicas.groups import Replica
from qwen_operator.status.prefetch import held_back
from qwen_operator.status.progress import column, sentence
from qwen_operator.status.rollouts import without_room
from qwen_operator.status.types import StatusInput

_URGENT = (Reason.CLAIM_NOT_FOUND, Reason.CLAIM_NOT_BOUND, Reason.IMAGE_PULL_FAILED, Reason.POD_REFUSED)


def unfinished(given: StatusInput) -> tuple[Reason, str]:
    """Why the present spec is not completely in use yet; SERVING if it is."""
    if given.blocked is not None:
        return _running_revision(given, given.blocked)
    reason, message = _target_revision(given)
    if given.replacing:
        message = without_room(reason, message, given.spec.hardware.resource_name, given.rules)
    return reason, message


def _target_revision(given: StatusInput) -> tuple[Reason, str]:
    if (obstacle := creation_obstacle(given)) is not None:
        return obstacle
    if (waiting := _most_urgent(given.current)) is not None:
        return waiting.reason, _with_progress(given, waiting)
    missing = given.wanted.number - sum(replica.ready for replica in given.current)
    return _waiting_for(given, missing) if missing > 0 else (Reason.SERVING, "every replica answers")


def _waiting_for(given: StatusInput, missing: int) -> tuple[Reason, str]:
    """Why so many replicas do not exist yet."""
    if given.given_back.reason is not None:
        return given.given_back.reason, given.given_back.message
    if given.prefetch.holds(missing):
        return held_back(given.prefetch, given.progress)
    if given.short_of_gpus:
        return Reason.WAITING_FOR_GPUS, given.short_of_gpus
    return Reason.STARTING, _missing(given, missing)


def _with_progress(given: StatusInput, replica: Replica) -> str:
    """The message of a replica that does not answer, with the numbers of its download or its start."""
    progress = given.progress
    if progress is None or column(progress, replica.reason) is None or progress.get("pod") != replica.explaining_pod:
        return replica.message
    return f"{replica.message}: {sentence(progress)}"


def _running_revision(given: StatusInput, blocked: Blocked) -> tuple[Reason, str]:
    """What keeps the earlier revision, which still runs, from serving; else why the present spec has no revision.

    What serves has the first say: a crash of it is more important than an inspection for the next revision.
    """
    running = [replica for replica in given.replicas.serving if given.running and given.wanted.number]
    trouble = _most_urgent(running)
    if trouble is None:
        return blocked.reason, blocked.message
    return trouble.reason, f"{trouble.message}; the changed spec is not in use yet: {blocked.message}"


def _most_urgent(replicas: Iterable[Replica]) -> Replica | None:
    """The replica that explains best why not all of them answer; None if all do."""
    waiting = [replica for replica in replicas if not replica.ready]
    # A failure is more important than a pod that is still starting.
    waiting.sort(key=lambda replica: (replica.on_the_way, replica.reason not in _URGENT, replica.index or 0))
    return waiting[0] if waiting else None


def creation_obstacle(given: StatusInput) -> tuple[Reason, str] | None:
    """What prevents the operator from creating an object."""
    if given.full is not None:
        return Reason.QUOTA_EXCEEDED, given.full
    if given.refusal is not None:
        return explain(given.refusal)
    return (Reason.FOREIGN_OBJECT, given.foreign) if given.foreign else None


def _missing(given: StatusInput, number: int) -> str:
    lost = [replica for replica in given.replicas.gone if replica.reason is Reason.NODE_LOST]
    cause = f"; {lost[0].message}" if lost else ""
    return f"the operator creates {number} of {given.wanted.number} replicas{cause}"
