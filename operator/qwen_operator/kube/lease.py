"""Decides which of several operators may write: an election over one Lease, and a gate for all writes.

Only the monotonic clock of each process decides. The times in the Lease are for people.

* A candidate takes the Lease after it has seen the same record for the record's whole duration, by its own clock.
* A leader counts from the moment before its renewal request. It stops `lease_seconds - deadline_seconds` before
  another candidate may begin.

Both rules also hold for a process that was suspended and resumed. Its clock continued, so it notices first that it
does not lead any more.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from qwen_operator import objects
from qwen_operator.kube.api import (
    LEASES,
    ApiError,
    Conflict,
    DeleteOptions,
    KubeApi,
    Manifest,
    NotFound,
    Resource,
    Unavailable,
)

# A write must end this long before another process may lead. That leaves time to cancel it, and covers clocks that do
# not run equally fast.
MARGIN_SECONDS = 1.0
ELECTION_REQUEST_SECONDS = 3.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """This process may not write, or not any more, so it must end. Not an ApiError, because a retry does not help."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The rules of one election. All candidates have the same, except `identity`, which names the pod and process."""

    namespace: str
    name: str
    identity: str
    lease_seconds: int = 15
    deadline_seconds: float = 10.0
    retry_seconds: float = 2.0


@dataclass(slots=True)
class Candidate:
    """What one candidate knows of the Lease. Pure: `now` is in monotonic seconds, `stamp` is wall-clock time."""

    terms: Terms
    _lease: Manifest | None = None
    _record: Manifest = field(default_factory=dict)
    _seen_at: float = float("-inf")
    _renewed_at: float | None = None

    def observe(self, lease: Manifest | None, now: float) -> None:
        """Store what was read; None if there is no Lease.

        The holder may still act after a person deleted the Lease. So a missing Lease changes nothing about the holder.
        """
        self._lease = lease
        record = dict(objects.mapping(lease, "spec")) if lease is not None else self._record
        if record != self._record:
            self._record, self._seen_at = record, now

    @property
    def holder(self) -> str:
        """The holder of the Lease when it was last read, "" if there is none."""
        return str(self._record.get("holderIdentity") or "")

    def wait(self, now: float) -> float:
        """Seconds until this candidate may try to take the Lease; 0 if it may try now."""
        if self.holder in ("", self.terms.identity):
            return 0.0
        given = self._record.get("leaseDurationSeconds")
        duration = given if isinstance(given, int) and given > 0 else self.terms.lease_seconds
        return max(0.0, self._seen_at + duration - now)

    def taken(self, stamp: str) -> Manifest:
        """The manifest with which this candidate takes the Lease. It has a resourceVersion if the Lease exists."""
        transitions = self._record.get("leaseTransitions")
        count = transitions if isinstance(transitions, int) else -1
        return self._with(stamp, acquireTime=stamp, leaseTransitions=count + 1)

    def renewed(self, stamp: str) -> Manifest:
        """The manifest with which this candidate renews the Lease."""
        return self._with(stamp)

    def released(self, stamp: str) -> Manifest:
        """The manifest with which this candidate gives the Lease back, so that another can take it at once."""
        return self._with(stamp, holderIdentity="", leaseDurationSeconds=1)

    def accepted(self, answer: Manifest, asked_at: float) -> None:
        """Note that the API server accepted `taken` or `renewed`, which was sent at `asked_at`."""
        self.observe(answer, asked_at)
        self._renewed_at = asked_at

    def drop(self) -> None:
        """Stop leading at once."""
        self._renewed_at = None

    def left(self, now: float) -> float:
        """Seconds during which a write may still begin. If it is 0 or less, this process does not lead."""
        return float("-inf") if self._renewed_at is None else self._renewed_at + self.terms.deadline_seconds - now

    def budget(self, now: float) -> float:
        """Seconds within which a write that begins now must end."""
        return self.left(now) + self.terms.lease_seconds - self.terms.deadline_seconds - MARGIN_SECONDS

    def _with(self, stamp: str, **changes: Any) -> Manifest:
        meta = self._lease["metadata"] if self._lease else {"name": self.terms.name, "namespace": self.terms.namespace}
        spec = {
            **self._record,
            "holderIdentity": self.terms.identity,
            "leaseDurationSeconds": self.terms.lease_seconds,
            "renewTime": stamp,
            **changes,
        }
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}


def wall_stamp() -> str:
    """The wall-clock time in the format of a Lease."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Elector:
    """Takes the Lease, renews it and gives it back. `clock` returns the event loop's monotonic seconds."""

    api: KubeApi
    terms: Terms
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    stamp: Callable[[], str] = wall_stamp
    candidate: Candidate = field(init=False)
    _failing: bool = False

    def __post_init__(self) -> None:
        self.candidate = Candidate(self.terms)

    def leads(self) -> bool:
        """Whether a write may begin."""
        return self.candidate.left(self.clock()) > 0

    def budget(self) -> float:
        """Seconds that a write may take. Raises NotLeading if no write may begin."""
        if not self.leads():
            raise NotLeading(f"{self.terms.identity} does not hold the Lease {self.terms.name}, so it may not write")
        return self.candidate.budget(self.clock())

    async def acquire(self) -> None:
        """Wait until this process leads. If the API server does not answer, the wait only gets longer."""
        while not self.leads():
            await self.sleep(await self._attempt())
        log.info("leading", extra={"lease": self.terms.name, "holder": self.terms.identity})

    async def hold(self) -> NoReturn:
        """Renew the Lease for ever. Raises NotLeading as soon as it is lost or could not be renewed in time."""
        while True:
            left = self.candidate.left(self.clock())
            await self.sleep(max(0.0, min(self.terms.retry_seconds, left)))
            await self._renew()

    async def release(self) -> None:
        """Give the Lease back, so that another process can lead at once. Does nothing without the Lease.

        Call it only after all writes have ended.
        """
        if not self.leads():
            return
        self.candidate.drop()
        try:
            try:
                await self._bounded(self.api.replace(LEASES, self.candidate.released(self.stamp())))
            except Conflict:
                # A renewal of this process was still on its way and came first.
                self.candidate.observe(await self._read(), self.clock())
                if self.candidate.holder != self.terms.identity:
                    return
                await self._bounded(self.api.replace(LEASES, self.candidate.released(self.stamp())))
        except ApiError as error:
            log.warning("cannot give the Lease back, it will expire", extra={"error": str(error)})
            return
        log.info("gave the Lease back", extra={"lease": self.terms.name})

    async def _attempt(self) -> float:
        """Read the Lease, and take it if it is free.

        Returns the seconds until the next attempt; 0 if this process now holds the Lease.
        """
        try:
            self.candidate.observe(await self._read(), self.clock())
            wait = self.candidate.wait(self.clock())
            if wait > 0:
                return min(self.terms.retry_seconds, wait)
            await self._write(self.candidate.taken(self.stamp()))
        except (Conflict, NotFound):
            # Another candidate was faster. The next attempt shows which one.
            return self.terms.retry_seconds
        except ApiError as error:
            self._log_outage(error)
            return self.terms.retry_seconds
        return 0.0

    async def _renew(self) -> None:
        if not self.leads():
            raise NotLeading(f"the Lease {self.terms.name} was not renewed for {self.terms.deadline_seconds:g} s")
        try:
            await self._write(self.candidate.renewed(self.stamp()))
        except (Conflict, NotFound):
            await self._renew_changed()
        except ApiError as error:
            self._log_outage(error)

    async def _renew_changed(self) -> None:
        """Read a Lease that changed unexpectedly, and renew it if this process still holds it.

        The change came from a renewal of this process whose answer was lost, from a person, or from a new leader.
        """
        try:
            self.candidate.observe(await self._read(), self.clock())
            if self.candidate.holder != self.terms.identity:
                self.candidate.drop()
                holder = self.candidate.holder or "nobody"
                raise NotLeading(f"{self.terms.identity} lost the Lease {self.terms.name}: {holder} holds it now")
            if self.leads():
                await self._write(self.candidate.renewed(self.stamp()))
        except ApiError as error:
            self._log_outage(error)

    async def _read(self) -> Manifest | None:
        try:
            return await self._bounded(self.api.get(LEASES, self.terms.namespace, self.terms.name))
        except NotFound:
            return None

    async def _write(self, lease: Manifest) -> None:
        exists = "resourceVersion" in lease["metadata"]
        asked_at = self.clock()
        request = self.api.replace(LEASES, lease) if exists else self.api.create(LEASES, lease)
        self.candidate.accepted(await self._bounded(request), asked_at)
        self._failing = False

    async def _bounded(self, request: Coroutine[Any, Any, Manifest]) -> Manifest:
        """Limit the time of a request: a hanging one must leave time for another, and end before the deadline."""
        left = self.candidate.left(self.clock())
        seconds = min(ELECTION_REQUEST_SECONDS, left) if left > 0 else ELECTION_REQUEST_SECONDS
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError as error:
            raise Unavailable(0, "NoAnswer", f"no answer about the Lease within {seconds:.1f} s") from error

    def _log_outage(self, error: ApiError) -> None:
        """Log one line per outage."""
        if not self._failing:
            self._failing = True
            log.warning("cannot read or write the Lease", extra={"error": str(error)})


class FencedApi:
    """A `KubeApi` whose writes need the Lease.

    No write begins without the Lease, and every write ends before another process may lead. If the caller is
    cancelled, a write that has begun still continues. `settled` waits for such writes.
    """

    def __init__(self, api: KubeApi, elector: Elector) -> None:
        self._api = api
        self._elector = elector
        self._writes: set[asyncio.Task[Any]] = set()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        return await self._api.get(resource, namespace, name)

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        return await self._api.list(resource, namespace, labels, fields)

    def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        return self._api.watch(resource, namespace, resource_version, labels)

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        return await self._write(lambda: self._api.create(resource, manifest))

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        return await self._write(lambda: self._api.replace(resource, manifest))

    async def apply_status(self, resource: Resource, manifest: Manifest, *, manager: str) -> Manifest:
        return await self._write(lambda: self._api.apply_status(resource, manifest, manager=manager))

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        return await self._write(lambda: self._api.patch(resource, namespace, name, patch))

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None:
        await self._write(lambda: self._api.delete(resource, namespace, name, options))

    async def aclose(self) -> None:
        await self._api.aclose()

    async def settled(self) -> None:
        """Wait until all writes have ended. Each write has a time limit."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def _write(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.create_task(self._fenced(request))
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _fenced(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # Do nothing between reading the clock and sending the request. The process could be suspended there, and the
        # budget would be too large when it resumes.
        budget = self._elector.budget()
        try:
            async with asyncio.timeout(budget):
                return await request()
        except TimeoutError as error:
            raise Unavailable(0, "NoAnswer", f"no answer within the {budget:.1f} s that the Lease leaves") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            # The caller may have been cancelled. asyncio logs an error for an exception that nobody retrieves.
            task.exception()
