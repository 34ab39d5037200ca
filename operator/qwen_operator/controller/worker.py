"""Takes keys from the queue: observe, decide, act, write the status. It also decides what follows an error.

The order of the writes: creations and repairs, then Events, then the status, then deletions. So the operator writes
the status while the pods in it still exist. It posts an Event before the status, because the next decision compares
with that status and would not see the change again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from qwen_operator import objects
from qwen_operator.actions.events import rfc3339
from qwen_operator.actions.types import Action, Create, Delete, Kind, Refusal
from qwen_operator.arbiter.types import Ask
from qwen_operator.config.types import Config
from qwen_operator.controller.execute import Actor, Stale
from qwen_operator.controller.free_nodes import FreeNodes
from qwen_operator.controller.hub_reader import HubReader
from qwen_operator.controller.observe import Observer
from qwen_operator.controller.queue import WorkQueue
from qwen_operator.controller.volume_claims import VolumeClaims
from qwen_operator.kube import ApiError, Manifest, NamespaceTerminating, TooManyRequests, Unavailable
from qwen_operator.kube.lease import NotLeading
from qwen_operator.objects import ObjectKey
from qwen_operator.reconcile.decide import decide
from qwen_operator.reconcile.types import Decision, Observed
from qwen_operator.status.crashed import crashed_status

# If only messages and reasons change, the operator writes the status at most once in this time. Otherwise a pod that is
# bound, starts and answers within a moment would cause three writes.
PACE_SECONDS = 5.0
# After so many crashes in a row, the status of the object says so. One crash may have a cause that is over at once.
CRASHES_SHOWN = 3

StatusObserver = Callable[[ObjectKey, Manifest, Manifest], None]
"""Called after every write of a status, with the key, the old status and the new one."""

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Unfinished(Exception):
    """The API server rejected an action, which must be retried.

    `after`: in how many seconds time alone changes the decision.
    """

    def __init__(self, error: ApiError, after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(slots=True)
class Reconciler:
    """Reconciles one key at a time. Raises ApiError if the key must be retried.

    `on_status` is called after each write of a status. `_failing`: keys whose last action failed inside the API
    server. `_undeleted` and `_unpinned`: deletions, and creations of ControllerRevisions, that the API server rejected.
    `on_ask` gets what each decision asks the arbiter for.
    """

    observer: Observer
    actor: Actor
    config: Config
    now: Callable[[], datetime] = utc_now
    on_status: StatusObserver = lambda _key, _old, _new: None
    hub: HubReader | None = None
    claims: VolumeClaims | None = None
    on_ask: Callable[[ObjectKey, Ask | None], None] = lambda _key, _ask: None
    free_nodes: FreeNodes | None = None
    _written: dict[ObjectKey, datetime] = field(default_factory=dict)
    _failing: set[ObjectKey] = field(default_factory=set)
    _undeleted: dict[ObjectKey, "_Rejected"] = field(default_factory=dict)
    _unpinned: dict[ObjectKey, "_Rejected"] = field(default_factory=dict)

    async def reconcile(self, key: ObjectKey) -> tuple[bool, float | None]:
        """Make and carry out one decision about the QwenDeployment.

        Returns whether the decision had actions, and in how many seconds time alone changes the decision. If the API
        server rejects an action, this does all the others and then raises Unfinished.
        """
        observed = self.observer.observe(key)
        if observed is None or objects.is_deleting(observed.deployment):
            # The garbage collector removes the children.
            self._forget(key)
            return False, None
        observed = await self._with_claims(observed)
        observed, decision = await self._decide_with_nodes(key, observed)
        if decision.query is not None and self.hub is not None:
            self.hub.ask(key, decision.query)
        try:
            rejected = await self._carry_out(key, decision.actions.before_status)
        except NamespaceTerminating:
            # Kubernetes deletes the object with its namespace. Until then there is nothing to create or report.
            return False, None
        _note(self._unpinned, key, rejected if rejected and rejected.pins else None)
        concluding = decision
        if decision.actions.before_status:
            # Observe again, so that one write of the status covers the objects that were just created.
            again = self.observer.observe(key) or observed
            observed = replace(again, claim=observed.claim, cache_claim=observed.cache_claim)
            observed, concluding = await self._decide_with_nodes(key, observed, rejected)
        too_early = await self._write(key, observed, concluding, now=rejected is not None)
        undeleted = await self._carry_out(key, decision.actions.after_status)
        _note(self._undeleted, key, undeleted)
        if rejected := rejected or undeleted:
            # The actions that succeeded may need another look at a certain time.
            raise Unfinished(rejected.error, _soonest(concluding.requeue_after, too_early))
        self._failing.discard(key)
        return bool(decision.actions), _soonest(decision.requeue_after, too_early)

    async def show_crash(self, key: ObjectKey, error: str) -> None:
        """Write into the object's status that the operator cannot handle it. The next decision replaces that status.

        `error` is the type of the error.
        """
        deployment = self.observer.deployment(key)
        if deployment is None or objects.is_deleting(deployment):
            return
        status = crashed_status(deployment, error, rfc3339(self.now()))
        if status is not None:
            await self.actor.write_status(deployment, status)

    async def _with_claims(self, observed: Observed) -> Observed:
        """The same, with the claims of the model and of the cache, which the operator does not watch."""
        if self.claims is not None:
            claim = await self.claims.of(observed)
            cache_claim = await self.claims.of_cache(observed, self.config.engine.cache)
            observed = replace(observed, claim=claim, cache_claim=cache_claim)
        return observed

    async def _decide_with_nodes(
        self, key: ObjectKey, observed: Observed, rejected: "_Rejected | None" = None
    ) -> tuple[Observed, Decision]:
        """The decision, and the observation with what was read for it."""
        if self.free_nodes is None:
            return observed, self._decide(key, observed, rejected)
        return await self.free_nodes.decided(observed, lambda seen: self._decide(key, seen, rejected))

    def _decide(self, key: ObjectKey, observed: Observed, rejected: "_Rejected | None" = None) -> Decision:
        """The decision, which the arbiter gets to know too."""
        decision = self._decision(key, observed, rejected)
        if observed.grant is not None:
            self.on_ask(key, decision.ask)
        return decision

    def _decision(self, key: ObjectKey, observed: Observed, rejected: "_Rejected | None") -> Decision:
        """The decision, with the rejection to report.

        Without a new rejection, that is one of an earlier reconcile, if what was rejected is still to be done.
        """
        if rejected is None:
            decision = decide(observed, self.config, self.now())
            actions = (*decision.actions.before_status, *decision.actions.after_status)
            earlier = [one for noted in (self._unpinned, self._undeleted) if (one := noted.get(key))]
            rejected = next((one for one in earlier if any(one.repeats(action) for action in actions)), None)
            if rejected is None:
                return decision
        return decide(replace(observed, refusal=rejected.refusal), self.config, self.now())

    async def _carry_out(self, key: ObjectKey, actions: Sequence[Action]) -> "_Rejected | None":
        """Do all actions. Returns the first rejected one.

        One rejection does not stop the rest: deletions may free quota.
        """
        rejected: _Rejected | None = None
        for action in actions:
            try:
                await self.actor.act(key, action)
            except NamespaceTerminating:
                raise
            except ApiError as error:
                if not self._is_shown(key, error):
                    raise
                rejected = rejected or _Rejected(action, error)
                if not error.status:
                    # Each further action might wait as long.
                    break
        return rejected

    def _is_shown(self, key: ObjectKey, error: ApiError) -> bool:
        """Whether the status shows the error of an action: a rejection at once, a failure if it is not over soon.

        An admission policy may reject with any status. A webhook that is down, or slower than the operator waits, fails
        for hours. A short failure is over by the next try.
        """
        if isinstance(error, TooManyRequests):
            return False
        if not isinstance(error, Unavailable):
            return True
        lasts = key in self._failing
        self._failing.add(key)
        return lasts

    def _forget(self, key: ObjectKey) -> None:
        self._written.pop(key, None)
        self._undeleted.pop(key, None)
        self._unpinned.pop(key, None)
        self._failing.discard(key)
        if self.hub is not None:
            self.hub.forget(key)

    async def _write(
        self, key: ObjectKey, observed: Observed, decision: Decision, *, now: bool = False
    ) -> float | None:
        """Write the status if it differs. If it is too early to write, return the seconds to wait."""
        old, new = dict(objects.mapping(observed.deployment, "status")), decision.status
        if new == old:
            return None
        wait = 0.0 if now or _substance(new) != _substance(old) else self._early(key)
        if wait > 0:
            return wait
        await self.actor.post(decision.events)
        await self.actor.write_status(observed.deployment, new)
        self._written[key] = self.now()
        self.on_status(key, old, new)
        return None

    def _early(self, key: ObjectKey) -> float:
        """Seconds until the status may be written; 0 if the clock was set back since the last write."""
        last = self._written.get(key)
        elapsed = (self.now() - last).total_seconds() if last is not None else PACE_SECONDS
        return PACE_SECONDS - elapsed if 0 <= elapsed < PACE_SECONDS else 0.0


def _substance(status: Manifest) -> Manifest:
    """The parts of a status that matter, without messages and reasons."""
    return {
        **{part: value for part, value in status.items() if part not in ("summary", "scaling")},
        "wanted": objects.mapping(status, "scaling").get("wanted"),
        "conditions": {item["type"]: item["status"] for item in objects.members(status, "conditions")},
    }


@dataclass(frozen=True, slots=True)
class _Rejected:
    """An action that the API server rejected, and its error."""

    action: Action
    error: ApiError

    @property
    def refusal(self) -> Refusal:
        deletion = isinstance(self.action, Delete)
        answered = bool(self.error.status)
        return Refusal(self.action.kind, self.action.name, self.error.message, deletion=deletion, answered=answered)

    @property
    def pins(self) -> bool:
        """Whether it is the creation of a ControllerRevision."""
        return isinstance(self.action, Create) and self.action.kind is Kind.CONTROLLER_REVISION

    def repeats(self, action: Action) -> bool:
        """Whether `action` is the rejected one once more."""
        if isinstance(self.action, Delete):
            return isinstance(action, Delete) and self.action.same_object(action)
        return isinstance(action, Create) and (action.kind, action.name) == (self.action.kind, self.action.name)


def _note(rejected: dict[ObjectKey, _Rejected], key: ObjectKey, one: _Rejected | None) -> None:
    """Remember the rejection, or that there is none any more."""
    if one is None:
        rejected.pop(key, None)
    else:
        rejected[key] = one


def _soonest(*seconds: float | None) -> float | None:
    return min((time for time in seconds if time is not None), default=None)


@dataclass(slots=True)
class Worker:
    """Takes keys from the queue for ever.

    It calls `report(outcome, seconds)` once per reconcile. It calls `failed` with the name of the error for each
    reconcile that must be repeated.
    """

    queue: WorkQueue
    reconciler: Reconciler
    report: Callable[[str, float], None]
    failed: Callable[[str], None] = lambda _reason: None
    _crashes: Counter[ObjectKey] = field(default_factory=Counter)

    async def run(self) -> None:
        while True:
            await self.work(await self.queue.get())

    async def work(self, key: ObjectKey) -> None:
        """Reconcile a key that was taken from the queue, and queue it again if that is needed."""
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
        deployment = {"deployment": "/".join(key)}
        try:
            acted, after = await self.reconciler.reconcile(key)
        except NotLeading:
            raise
        except Stale as error:
            self.queue.again(key)
            log.debug("deciding again", extra={**deployment, "cause": str(error)})
            return "stale"
        except Unfinished as unfinished:
            if unfinished.after is not None:
                self.queue.add_after(key, unfinished.after)
            return self._retry(key, unfinished.error)
        except ApiError as error:
            return self._retry(key, error)
        except Exception as error:
            # An object that the operator cannot handle must not stop the work on the others.
            delay = self.queue.retry(key)
            self.failed(type(error).__name__)
            log.exception("reconcile crashed", extra={**deployment, "retry_seconds": round(delay, 1)})
            await self._crashed(key, type(error).__name__)
            return "crash"
        self._crashes.pop(key, None)
        if acted:
            self.queue.again(key)
        else:
            self.queue.forget(key)
        if after is not None:
            self.queue.add_after(key, after)
        return "acted" if acted else "quiet"

    async def _crashed(self, key: ObjectKey, error: str) -> None:
        self._crashes[key] += 1
        if self._crashes[key] < CRASHES_SHOWN:
            return
        try:
            await self.reconciler.show_crash(key, error)
        except NotLeading:
            raise
        except Exception:
            # The next crash tries again. Until then the log and the metric have it.
            log.warning("a crash cannot be shown", extra={"deployment": "/".join(key)}, exc_info=True)

    def _retry(self, key: ObjectKey, error: ApiError) -> str:
        delay = self.queue.retry(key, error.retry_after or 0.0)
        self.failed(type(error).__name__)
        log.warning(
            "reconcile failed",
            extra={"deployment": "/".join(key), "error": str(error), "retry_seconds": round(delay, 1)},
        )
        return "error"
