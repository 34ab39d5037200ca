"""Works the queue: observe, decide, act, status; and what happens when one of these fails.

Order of the writes: what creates or repairs, then Events, then the status, then deletions. So the status is written
while the pods that it speaks of still exist, and an Event is posted before the status that would hide its cause.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from qwen_operator.kube import ApiError, Forbidden, Invalid, Manifest, NamespaceTerminating
from qwen_operator.kube.lease import NotLeading
from qwen_operator.reconcile.act import Actor, Stale
from qwen_operator.reconcile.config import Config
from qwen_operator.reconcile.decide import decide
from qwen_operator.reconcile.hub import HubReader
from qwen_operator.reconcile.model import Action, Create, Decision, Delete, Observed, Refusal
from qwen_operator.reconcile.observe import Observer
from qwen_operator.reconcile.queue import Key, WorkQueue

# A status that only says it in other words is not written more often than this: a pod that is bound, starts and
# answers within a moment would otherwise be told three times.
PACE_SECONDS = 5.0

StatusObserver = Callable[[Key, Manifest, Manifest], None]
"""Told of every status that was written: of whom, the one before, the new one."""

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Reconciler:
    """One reconcile of one key. Raises ApiError when it has to be tried again."""

    observer: Observer
    actor: Actor
    config: Config
    now: Callable[[], datetime] = utc_now
    wrote: StatusObserver = lambda _key, _old, _new: None
    hub: HubReader | None = None
    _written: dict[Key, datetime] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> tuple[bool, float | None]:
        """Bring the QwenDeployment one decision further.

        Returns whether anything was done to its children, and in how many seconds time alone changes the decision.
        """
        observed = self.observer.observe(key)
        if observed is None or "deletionTimestamp" in observed.deployment["metadata"]:
            # The garbage collector removes the children.
            self._written.pop(key, None)
            if self.hub is not None:
                self.hub.forget(key)
            return False, None
        decision = decide(observed, self.config, self.now())
        if decision.ask is not None and self.hub is not None:
            self.hub.ask(key, decision.ask)
        removals = [action for action in decision.actions if isinstance(action, Delete)]
        others = [action for action in decision.actions if not isinstance(action, Delete)]
        refused: tuple[Action, ApiError] | None = None
        for action in others:
            try:
                await self.actor.act(key, action)
            except NamespaceTerminating:
                # The object goes with its namespace; until then there is nothing to make and nothing to say.
                return False, None
            except (Invalid, Forbidden) as error:
                # A no to one action is none to the others: what a quota refuses, the removals may make room for.
                refused = refused or (action, error)
        if refused:
            latest = _refused(self.observer.observe(key) or observed, *refused)
            held = await self._write(key, latest, decide(latest, self.config, self.now()), now=True)
        elif others:
            # The status speaks of what is there now: one write instead of two.
            latest = self.observer.observe(key) or observed
            held = await self._write(key, latest, decide(latest, self.config, self.now()))
        else:
            held = await self._write(key, observed, decision)
        for removal in removals:
            await self.actor.act(key, removal)
        if refused:
            raise refused[1]
        waits = [seconds for seconds in (decision.requeue_after, held) if seconds is not None]
        return bool(decision.actions), min(waits, default=None)

    async def _write(self, key: Key, observed: Observed, decision: Decision, *, now: bool = False) -> float | None:
        """Write the status if it differs; returns the seconds to wait if it is too early for that."""
        old, new = observed.deployment.get("status") or {}, decision.status
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

    def _early(self, key: Key) -> float:
        """Seconds by which a status would be written too early; a clock that was set back is no reason to wait."""
        last = self._written.get(key)
        elapsed = (self.now() - last).total_seconds() if last is not None else PACE_SECONDS
        return PACE_SECONDS - elapsed if 0 <= elapsed < PACE_SECONDS else 0.0


def _substance(status: Manifest) -> Manifest:
    """What a status says, without the words in which it says so."""
    return {
        **{part: value for part, value in status.items() if part not in ("summary", "scaling")},
        "wanted": (status.get("scaling") or {}).get("wanted"),
        "conditions": {item["type"]: item["status"] for item in status.get("conditions") or ()},
    }


def _refused(observed: Observed, action: Action, error: ApiError) -> Observed:
    name = action.manifest["metadata"]["name"] if isinstance(action, Create) else action.name
    return replace(observed, refusal=Refusal(action.kind, name, error.message))


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

    async def work(self, key: Key) -> None:
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

    async def _attempt(self, key: Key) -> str:
        where = {"deployment": "/".join(key)}
        try:
            acted, after = await self.reconciler.reconcile(key)
        except NotLeading:
            raise
        except Stale as error:
            self.queue.again(key)
            log.debug("looking again", extra={**where, "cause": str(error)})
            return "stale"
        except ApiError as error:
            delay = self.queue.retry(key, error.retry_after or 0.0)
            self.failed(type(error).__name__)
            log.warning("reconcile failed", extra={**where, "error": str(error), "retry_seconds": round(delay, 1)})
            return "error"
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
