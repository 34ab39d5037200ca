"""Reads model hubs in the background: a few readings at a time, with growing delays after failures.

The answer queues the QwenDeployments that wait for it. A good answer serves all equal queries for some minutes. If a
hub does not answer at all, or asks for a pause, the reader stops asking it for a while. Then one query tries again,
however many wait.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.hubs import Hub, HubAnswer, HubCheckpoint, HubError, HubQuery, HubReason
from qwen_operator.objects import ObjectKey

# Each reading may hold the index of a large model in memory, at most about 100 MB.
READINGS = 3
KEPT_SECONDS = 600
FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 1800
PATIENCE_SECONDS = 30.0
# If the catalog has the model too, the operator uses the catalog instead of waiting long.
SHORT_PATIENCE_SECONDS = 6.0

Fetch = Callable[[HubQuery, float], Awaitable[HubCheckpoint]]
"""Reads a repository. The number is its time limit in seconds. Raises HubError."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outage:
    """A hub that does not answer, or that asks for a pause. The reader does not ask it before `until`."""

    until: datetime
    failures: int
    message: str
    reason: HubReason

    def answer(self, query: HubQuery) -> HubAnswer:
        return HubAnswer(query, self.until, None, self.reason, self.message, self.failures)


class HubReader:
    """For one event loop. `add` queues a QwenDeployment; `now` returns a timezone-aware time."""

    def __init__(self, fetch: Fetch, add: Callable[[ObjectKey], None], now: Callable[[], datetime]) -> None:
        self._fetch = fetch
        self._add = add
        self._now = now
        self._answers: dict[ObjectKey, HubAnswer] = {}
        self._waiting: dict[HubQuery, set[ObjectKey]] = {}
        self._queries: asyncio.Queue[HubQuery] = asyncio.Queue()
        self._outages: dict[Hub, _Outage] = {}
        self._probing = {hub: asyncio.Lock() for hub in Hub}

    @property
    def has_queries(self) -> bool:
        """Whether a query waits for a free reading."""
        return not self._queries.empty()

    def answer_for(self, key: ObjectKey) -> HubAnswer | None:
        """The answer to the last query of this QwenDeployment."""
        return self._answers.get(key)

    def forget(self, key: ObjectKey) -> None:
        """Drop everything about a QwenDeployment that was deleted."""
        self._answers.pop(key, None)
        for keys in self._waiting.values():
            keys.discard(key)

    def ask(self, key: ObjectKey, query: HubQuery) -> None:
        """Answer the query and then queue the key: at once if there is a fresh answer to an equal query."""
        if (answer := self._fresh(query)) is not None:
            self._deliver(key, answer)
        elif query in self._waiting:
            self._waiting[query].add(key)
        else:
            self._waiting[query] = {key}
            self._queries.put_nowait(query)

    async def run(self) -> None:
        """Answer queries for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(READINGS):
                group.create_task(self._answer_all())

    async def answer_next(self) -> None:
        """Wait for a query and answer it."""
        query = await self._queries.get()
        answer = await self._answer(query) if self._waiting[query] else None
        for key in sorted(self._waiting.pop(query)):
            if answer is not None:
                self._deliver(key, answer)

    async def _answer_all(self) -> None:
        while True:
            await self.answer_next()

    def _fresh(self, query: HubQuery) -> HubAnswer | None:
        now = self._now()
        answers = self._answers.values()
        return next((answer for answer in answers if answer.query == query and now < answer.again), None)

    def _deliver(self, key: ObjectKey, answer: HubAnswer) -> None:
        self._answers[key] = answer
        self._add(key)

    async def _answer(self, query: HubQuery) -> HubAnswer:
        if query.hub not in self._outages:
            return await self._read(query)
        async with self._probing[query.hub]:
            outage = self._outages.get(query.hub)
            if outage is None or self._now() >= outage.until:
                return await self._read(query)
            return outage.answer(query)

    async def _read(self, query: HubQuery) -> HubAnswer:
        # Of a file, the catalog knows no tensors. Without an answer there is no plan.
        known = catalog.lookup(query.repository) is not None and not query.file
        patience = SHORT_PATIENCE_SECONDS if known else PATIENCE_SECONDS
        try:
            fetched = await self._fetch(query, patience)
        except HubError as error:
            return self._failed(query, error)
        except Exception:
            # An unforeseen answer must not end the operator.
            log.exception("reading a hub crashed", extra={"object": f"{query.hub}://{query.repository}"})
            message = f"the operator does not understand the hub's answer for {query.repository}"
            return self._failed(query, HubError(HubReason.INVALID, message))
        self._end_outage(query.hub)
        again = self._now() + timedelta(seconds=KEPT_SECONDS)
        return HubAnswer(query, again, replace(fetched.checkpoint, commit=fetched.commit))

    def _failed(self, query: HubQuery, error: HubError) -> HubAnswer:
        reason, message = error.reason, str(error)
        answers = self._answers.values()
        before = next((answer for answer in answers if answer.query == query and answer.reason is reason), None)
        outage = self._outages.get(query.hub)
        of_hub = reason is HubReason.OFFLINE or error.pause_seconds is not None
        if of_hub and outage and self._now() < outage.until:
            # Another reading noticed it at the same time.
            return outage.answer(query)
        if of_hub:
            failures = outage.failures + 1 if outage else 1
        else:
            failures = before.failures + 1 if before else 1
            self._end_outage(query.hub)
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10))
        delay = max(delay, error.pause_seconds or 0)
        again = self._now() + timedelta(seconds=delay)
        if reason in (HubReason.OFFLINE, HubReason.UNAVAILABLE):
            uri = f"{query.hub}://{query.repository}"
            log.warning("cannot read the hub", extra={"object": uri, "error": error.whole, "retry_seconds": delay})
        if of_hub:
            self._outages[query.hub] = _Outage(again, failures, message, reason)
        return HubAnswer(query, again, None, reason, message, failures)

    def _end_outage(self, hub: Hub) -> None:
        """The hub answered. A pause that it asked for goes on, because the answer may be to an earlier query."""
        outage = self._outages.get(hub)
        if outage and (outage.reason is HubReason.OFFLINE or self._now() >= outage.until):
            del self._outages[hub]
