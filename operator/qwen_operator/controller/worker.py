"""Works the queue: observe, decide, act, status; and what happens when one of these fails.

Order of the writes: what creates or repairs, then Events, then the status, then deletions. So the status is written
while the pods that it speaks of still exist, and an Event is posted before the status that would hide its cause.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from qwen_operator import objects
from qwen_operator.actions.types import Action, Delete, Refusal
from qwen_operator.config import Config
from qwen_operator.controller.execute import Actor, Stale
from qwen_operator.controller.hub_reader import HubReader
from qwen_operator.controller.observe import Observer
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.kube import ApiError, Forbidden, Invalid, Manifest, NamespaceTerminating, Unavailable
from qwen_operator.kube.lease import NotLeading
from qwen_operator.objects import ObjectKey
from qwen_operator.reconcile.decide import decide
from qwen_operator.reconcile.types import Decision, Observed

# A status that only says it in other words is not written more often than this: a pod that is bound, starts and
# answers within a moment would otherwise be told three times.
PACE_SECONDS = 5.0

StatusObserver = Callable[[ObjectKey, Manifest, Manifest], None]
"""Told of every status that was written: of whom, the one before, the new one."""

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Unfinished(Exception):
    """Something was refused and has to be tried again; what time alone changes is due in `after` seconds."""

    def __init__(self, error: ApiError, after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(slots=True)
class Reconciler:
    """One reconcile of one key. Raises ApiError when it has to be tried again.

    `_failing`: keys whose last action met an error of the API server's own. `_undeleted`: what it refused to delete.
    """

    observer: Observer
    actor: Actor
    config: Config
    now: Callable[[], datetime] = utc_now
    wrote: StatusObserver = lambda _key, _old, _new: None
    hub: HubReader | None = None
    _written: dict[ObjectKey, datetime] = field(default_factory=dict)
    _failing: set[ObjectKey] = field(default_factory=set)
    _undeleted: dict[ObjectKey, "_Refused"] = field(default_factory=dict)

    async def reconcile(self, key: ObjectKey) -> tuple[bool, float | None]:
        """Bring the QwenDeployment one decision further.

        Returns whether anything was done to its children, and in how many seconds time alone changes the decision.
        Raises Unfinished when something was refused, after all else was done.
        """
        observed = self.observer.observe(key)
        if observed is None or objects.is_deleting(observed.deployment):
            # The garbage collector removes the children.
            self._forget(key)
            return False, None
        decision = self._decide(key, observed)
        if decision.query is not None and self.hub is not None:
            self.hub.ask(key, decision.query)
        try:
            refused = await self._carry_out(key, decision.actions.before_status)
        except NamespaceTerminating:
            # The object goes with its namespace; until then there is nothing to make and nothing to say.
            return False, None
        concluding = decision
        if decision.actions.before_status:
            # The status speaks of what is there now: one write instead of two.
            observed = self.observer.observe(key) or observed
            concluding = self._decide(key, observed, refused)
        too_early = await self._write(key, observed, concluding, now=refused is not None)
        undeleted = await self._carry_out(key, decision.actions.after_status)
        if undeleted:
            self._undeleted[key] = undeleted
        else:
            self._undeleted.pop(key, None)
        if refused := refused or undeleted:
            # What was done before the refusal has its times too.
            raise Unfinished(refused.error, _soonest(concluding.requeue_after, too_early))
        self._failing.discard(key)
        return bool(decision.actions), _soonest(decision.requeue_after, too_early)

    def _decide(self, key: ObjectKey, observed: Observed, refused: "_Refused | None" = None) -> Decision:
        """The decision, with the refusal of now, or of the deletions before if they are still to be done."""
        if refused is None:
            decision = decide(observed, self.config, self.now())
            refused = self._undeleted.get(key)
            if refused is None or not any(refused.repeats(action) for action in decision.actions.after_status):
                return decision
        return decide(replace(observed, refusal=refused.refusal), self.config, self.now())

    async def _carry_out(self, key: ObjectKey, actions: Sequence[Action]) -> "_Refused | None":
        """Do all of them; returns the first that was refused. One rejection does not stop the rest: deletions may
        free quota."""
        refused: _Refused | None = None
        for action in actions:
            try:
                await self.actor.act(key, action)
            except NamespaceTerminating:
                raise
            except (Invalid, Forbidden) as error:
                refused = refused or _Refused(action, error)
            except Unavailable as error:
                # A webhook that is down says no for hours, in words of its own; a hiccup is over by the next try.
                if error.status < 500 or key not in self._failing:
                    self._failing.add(key)
                    raise
                refused = refused or _Refused(action, error)
        return refused

    def _forget(self, key: ObjectKey) -> None:
        self._written.pop(key, None)
        self._undeleted.pop(key, None)
        self._failing.discard(key)
        if self.hub is not None:
            self.hub.forget(key)

    async def _write(
        self, key: ObjectKey, observed: Observed, decision: Decision, *, now: bool = False
    ) -> float | None:
        """Write the status if it differs; returns the seconds to wait if it is too early for that."""
        old, new = dict(objects.mapping(observed.deployment, "status")), decision.status
        if new == old:
            return None
        wait = 0.0 if now or _substance(new) != _substance(old) else self._early(key)
        if wait > 0:
            return wait
        await self.actor.post(decision.events)
        await self.actor.write_status(observed.deployment, new)
        self._written[key] = self.now()
        self.wrote(key, old, new)
        return None

    def _early(self, key: ObjectKey) -> float:
        """Seconds by which a status would be written too early; a clock that was set back is no reason to wait."""
        last = self._written.get(key)
        elapsed = (self.now() - last).total_seconds() if last is not None else PACE_SECONDS
        return PACE_SECONDS - elapsed if 0 <= elapsed < PACE_SECONDS else 0.0


def _substance(status: Manifest) -> Manifest:
    """What a status says, without the words in which it says so."""
    return {
        **{part: value for part, value in status.items() if part not in ("summary", "scaling")},
        "wanted": objects.mapping(status, "scaling").get("wanted"),
        "conditions": {item["type"]: item["status"] for item in objects.members(status, "conditions")},
    }


@dataclass(frozen=True, slots=True)
class _Refused:
    """An action, and the API server's refusal of it."""

    action: Action
    error: ApiError

    @property
    def refusal(self) -> Refusal:
        deletion = isinstance(self.action, Delete)
        return Refusal(self.action.kind, self.action.name, self.error.message, deletion=deletion)

    def repeats(self, action: Delete) -> bool:
        """Whether it is the same deletion."""
        return isinstance(self.action, Delete) and self.action.same_object(action)


def _soonest(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)


@dataclass(slots=True)
class Worker:
    """Takes keys from the queue for ever. `report(outcome, seconds)` is called once per reconcile, `failed` with the
    name of the error of each that has to be repeated."""

    queue: WorkQueue
    reconciler: Reconciler
    report: Callable[[str, float], None]
    failed: Callable[[str], None] = lambda _reason: None

    async def run(self) -> None:
        while True:
            await self.work(await self.queue.get())

    async def work(self, key: ObjectKey) -> None:
        """Reconcile a key that was taken from the queue, and arrange for what comes next."""
        start, outcome = time.monotonic(), "error"
        try:
            outcome = await self._attempt(key)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.queue.done(key)
            self.report(outcome, time.monotonic() - start)

    async def _attempt(self, key: ObjectKey) -> str:
        where = {"deployment": "/".join(key)}
        try:
            acted, after = await self.reconciler.reconcile(key)
        except NotLeading:
            raise
        except Stale as error:
            self.queue.again(key)
            log.debug("looking again", extra={**where, "cause": str(error)})
            return "stale"
        except Unfinished as unfinished:
            if unfinished.after is not None:
                self.queue.add_after(key, unfinished.after)
            return self._retry(key, unfinished.error)
        except ApiError as error:
            return self._retry(key, error)
        except Exception as error:
            # One object that this program cannot handle must not take the others down with it.
            delay = self.queue.retry(key)
            self.failed(type(error).__name__)
            log.exception("reconcile crashed", extra={**where, "retry_seconds": round(delay, 1)})
            return "crash"
        if acted:
            self.queue.again(key)
        else:
            self.queue.forget(key)
        if after is not None:
            self.queue.add_after(key, after)
        return "acted" if acted else "quiet"

    def _retry(self, key: ObjectKey, error: ApiError) -> str:
        delay = self.queue.retry(key, error.retry_after or 0.0)
        self.failed(type(error).__name__)
        where = {"deployment": "/".join(key)}
        log.warning("reconcile failed", extra={**where, "error": str(error), "retry_seconds": round(delay, 1)})
        return "error"
