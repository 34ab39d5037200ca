"""Reads model hubs for the decisions that ask: few at once, in no worker's way, and none again in haste.

An answer wakes the QwenDeployments that asked. One good answer serves all who ask the same for some minutes. A hub
that does not answer at all is left alone as a whole: however many models wait for it, one of them tries.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.hubs import Hub, HubAnswer, HubCheckpoint, HubError, HubQuery, HubReason
from qwen_operator.objects import ObjectKey

# Each may hold the index of a large model in memory, some 100 MB at the most.
READINGS = 3
KEPT_SECONDS = 600
FIRST_RETRY_SECONDS = 30
LAST_RETRY_SECONDS = 1800
PATIENCE_SECONDS = 30.0
# Where the catalog has the model too, it is used rather than to wait for long.
SHORT_PATIENCE_SECONDS = 6.0

Fetch = Callable[[HubQuery, float], Awaitable[HubCheckpoint]]
"""Reads a repository within so many seconds; raises HubError."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outage:
    """A hub without an answer: not asked before `until`."""

    until: datetime
    failures: int
    message: str


class HubReader:
    """For one event loop. `add` queues a QwenDeployment, `now` is the time, timezone-aware."""

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
        """Whether a query waits that nobody answers yet."""
        return not self._queries.empty()

    def known(self, key: ObjectKey) -> HubAnswer | None:
        """The answer to the last query of this QwenDeployment."""
        return self._answers.get(key)

    def forget(self, key: ObjectKey) -> None:
        """The QwenDeployment exists no more."""
        self._answers.pop(key, None)
        for keys in self._waiting.values():
            keys.discard(key)

    def ask(self, key: ObjectKey, query: HubQuery) -> None:
        """Have the query answered, at once if somebody else has the answer, and the key queued then."""
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
        return next((one for one in self._answers.values() if one.query == query and now < one.again), None)

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
            return HubAnswer(query, outage.until, None, HubReason.OFFLINE, outage.message, outage.failures)

    async def _read(self, query: HubQuery) -> HubAnswer:
        patience = SHORT_PATIENCE_SECONDS if catalog.lookup(query.repository) else PATIENCE_SECONDS
        try:
            read = await self._fetch(query, patience)
        except HubError as error:
            return self._failed(query, error)
        except Exception:
            # An answer of an unforeseen shape must not end the operator.
            log.exception("reading a hub crashed", extra={"object": f"{query.hub}://{query.repository}"})
            message = f"the hub's answer for {query.repository} is not understood"
            return self._failed(query, HubError(HubReason.INVALID, message))
        self._outages.pop(query.hub, None)
        again = self._now() + timedelta(seconds=KEPT_SECONDS)
        return HubAnswer(query, again, replace(read.checkpoint, commit=read.commit))

    def _failed(self, query: HubQuery, error: HubError) -> HubAnswer:
        reason, message = error.reason, str(error)
        before = next((one for one in self._answers.values() if one.query == query and one.reason is reason), None)
        outage = self._outages.get(query.hub)
        if reason is HubReason.OFFLINE:
            if outage and self._now() < outage.until:
                # Another reading found out at the same time.
                return HubAnswer(query, outage.until, None, reason, outage.message, outage.failures)
            failures = outage.failures + 1 if outage else 1
        else:
            failures = before.failures + 1 if before else 1
            # It answered.
            self._outages.pop(query.hub, None)
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10))
        again = self._now() + timedelta(seconds=delay)
        if reason in (HubReason.OFFLINE, HubReason.UNAVAILABLE):
            where = f"{query.hub}://{query.repository}"
            log.warning("hub not read", extra={"object": where, "error": error.whole, "retry_seconds": delay})
        if reason is HubReason.OFFLINE:
            self._outages[query.hub] = _Outage(again, failures, message)
        return HubAnswer(query, again, None, reason, message, failures)
