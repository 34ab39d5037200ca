"""The engine pods of a deployment, sorted by what is to become of them. Pure.

A planned removal takes three steps, each of which can be seen in the pod itself, so that any process can take the
next one: without the routable label and with the time of that it is *draining* and gets no new requests; it is idle,
or out of time; it is deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from qwen_operator.actions.types import Nodes
from qwen_operator.manifests.names import ANNOTATION_CORDONED_SINCE, ANNOTATION_DRAINING_SINCE, LABEL_ROUTABLE
from qwen_operator.replicas.node_health import node_of, stays_when_cordoned
from qwen_operator.replicas.pod_state import PodState

# The longest drain. Clocks that differ by more are no clocks, and who edits an annotation may write any time.
_FARTHEST_AHEAD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Fleet:
    """`fresh`: of the revision to run, they count. `leaving`: they serve until a fresh one answers in their place,
    because they are of another revision or on a cordoned node. `draining`: on their way out. `ended`: their phase is
    final. `useless`: of another revision and never came up. `strange`: ours by mark, but without a name of ours.

    `gone`: being deleted, or on a node that exists no more; they are no replicas and nothing is asked of them. What
    has not come up yet is not among the latter: its node may be newer than the operator's view of the nodes, and
    Kubernetes itself removes the pods of a node that is gone.
    """

    fresh: tuple[PodState, ...] = ()
    leaving: tuple[PodState, ...] = ()
    draining: tuple[PodState, ...] = ()
    ended: tuple[PodState, ...] = ()
    useless: tuple[PodState, ...] = ()
    strange: tuple[PodState, ...] = ()
    gone: tuple[PodState, ...] = ()

    @property
    def serving(self) -> tuple[PodState, ...]:
        """All that get requests, or will."""
        return (*self.fresh, *self.leaving, *self.useless)

    @property
    def all(self) -> tuple[PodState, ...]:
        return (*self.serving, *self.draining, *self.ended, *self.strange, *self.gone)

    def replicas(self, wanted: int) -> int:
        """Replicas that exist: a pod that is started beside the one it will replace is not another one."""
        total = len(self.serving)
        return total - 1 if self.leaving and total > wanted else total

    def answering(self, wanted: int) -> int:
        """Replicas that answer."""
        return min(self.replicas(wanted), sum(state.ready for state in self.serving))


def fleet_of(states: Sequence[PodState], revision: str, nodes: Nodes) -> Fleet:
    """The pods sorted; `revision` is the one to run, "" if there is none."""
    sorted_states: dict[str, list[PodState]] = {}
    for state in states:
        sorted_states.setdefault(_place(state, revision, nodes), []).append(state)
    return Fleet(**{place: tuple(found) for place, found in sorted_states.items()})


def _place(state: PodState, revision: str, nodes: Nodes) -> str:
    checks = (
        (state.deleting or node_lost(state, nodes), "gone"),
        (state.index is None, "strange"),
        (state.ended, "ended"),
        (is_draining(state), "draining"),
        (state.revision != revision, "leaving" if state.started else "useless"),
        (state.started and cordoned(state, nodes), "leaving"),
    )
    return next((place for holds, place in checks if holds), "fresh")


def node_lost(state: PodState, nodes: Nodes) -> bool:
    """Whether the pod came up on a node that exists no more."""
    return state.started and nodes.gone(node_of(state.pod))


def is_draining(state: PodState) -> bool:
    return ANNOTATION_DRAINING_SINCE in annotations(state)


def cordoned(state: PodState, nodes: Nodes) -> bool:
    """Whether the pod is on a node that is to be emptied."""
    return node_of(state.pod) in nodes.cordoned and not stays_when_cordoned(state.pod)


def up(state: PodState) -> bool:
    """Whether the engine answers, be it that the gateway does not send it anything yet."""
    return state.ready or state.settles_in > 0


def annotations(state: PodState) -> dict[str, str]:
    return state.pod["metadata"].get("annotations") or {}


def routable(state: PodState) -> bool:
    return LABEL_ROUTABLE in (state.pod["metadata"].get("labels") or {})


def drains_since(state: PodState, now: datetime) -> datetime | None:
    """When the pod was unrouted; None if that cannot be read."""
    return _noted(annotations(state).get(ANNOTATION_DRAINING_SINCE), now)


def drains_for(state: PodState, now: datetime) -> float:
    """Seconds since the pod was unrouted."""
    return since(drains_since(state, now), now)


def cordoned_for(state: PodState, now: datetime) -> float | None:
    """Seconds since the operator saw that the pod's node is cordoned; None if it has not noted that yet."""
    stamp = annotations(state).get(ANNOTATION_CORDONED_SINCE)
    return None if stamp is None else since(_noted(stamp, now), now)


def since(then: datetime | None, now: datetime) -> float:
    """Seconds since then; what is no time was long ago, or a drain with an edited annotation would never end."""
    return float("inf") if then is None else (now - then).total_seconds()


def _noted(stamp: object, now: datetime) -> datetime | None:
    """The time that an annotation of ours names; None for what is no time, or one that lies too far ahead."""
    then = moment(stamp)
    return None if then is None or then - now > _FARTHEST_AHEAD else then


def moment(stamp: object) -> datetime | None:
    """The time of an RFC 3339 text; None for anything else, also for a time without a zone."""
    try:
        found = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
