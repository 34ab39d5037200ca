"""Who of several operators may write: an election over one Lease, and the gate that holds everybody else back.

Only the monotonic clock decides. A candidate takes the Lease when it has seen the same record for the record's whole
duration by its own clock; the times inside the record are for people. A leader counts from before it asked for the
renewal, and gives up `lease_seconds - deadline_seconds` before anybody else may begin. Both hold as well for a process
that was stopped and goes on: the clock went on, so its first act is to find out that it leads no more.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from qwen_operator.kube.api import LEASES, ApiError, Conflict, KubeApi, Manifest, NotFound, Resource, Unavailable

# A write is given up so long before another may lead: room for the time it takes to give up, and for clocks that
# do not run equally fast.
MARGIN_SECONDS = 1.0
ELECTION_REQUEST_SECONDS = 3.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """This process may not write (any more): it has to end. Not an ApiError, because repeating does not help."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The rules of one election, the same for all candidates. `identity` names the pod and this very process."""

    namespace: str
    name: str
    identity: str
    lease_seconds: int = 15
    deadline_seconds: float = 10.0
    retry_seconds: float = 2.0


@dataclass(slots=True)
class Claim:
    """What one candidate knows of the Lease. Pure: `now` is monotonic seconds, `stamp` the wall clock for people."""

    terms: Terms
    _lease: Manifest | None = None
    _record: Manifest = field(default_factory=dict)
    _seen_at: float = float("-inf")
    _renewed_at: float | None = None

    def observe(self, lease: Manifest | None, now: float) -> None:
        """Take in what was read; None where there is no Lease.

        A Lease that is gone is no news of its holder: whoever deleted it, the holder may still act.
        """
        self._lease = lease
        record = (lease.get("spec") or {}) if lease is not None else self._record
        if record != self._record:
            self._record, self._seen_at = record, now

    @property
    def holder(self) -> str:
        """Who holds the Lease by what was read last, "" for nobody."""
        return str(self._record.get("holderIdentity") or "")

    def wait(self, now: float) -> float:
        """Seconds until this candidate may try to take the Lease, 0 when it may now."""
        if self.holder in ("", self.terms.identity):
            return 0.0
        given = self._record.get("leaseDurationSeconds")
        duration = given if isinstance(given, int) and given > 0 else self.terms.lease_seconds
        return max(0.0, self._seen_at + duration - now)

    def taken(self, stamp: str) -> Manifest:
        """The Lease as it will be when this candidate has taken it; with a resourceVersion if it exists."""
        transitions = self._record.get("leaseTransitions")
        count = transitions if isinstance(transitions, int) else -1
        return self._with(stamp, acquireTime=stamp, leaseTransitions=count + 1)

    def renewed(self, stamp: str) -> Manifest:
        """The Lease with a fresh sign of life."""
        return self._with(stamp)

    def released(self, stamp: str) -> Manifest:
        """The Lease for anybody to take at once."""
        return self._with(stamp, holderIdentity="", leaseDurationSeconds=1)

    def granted(self, answer: Manifest, asked_at: float) -> None:
        """The API server took `taken` or `renewed`, asked for at `asked_at`."""
        self.observe(answer, asked_at)
        self._renewed_at = asked_at

    def drop(self) -> None:
        """Lead no more, whatever the clock says."""
        self._renewed_at = None

    def left(self, now: float) -> float:
        """Seconds in which a write may still begin; 0 or less: this process does not lead."""
        return float("-inf") if self._renewed_at is None else self._renewed_at + self.terms.deadline_seconds - now

    def budget(self, now: float) -> float:
        """Seconds in which a write that begins now must have ended."""
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
    """The time as a Lease shows it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Elector:
    """Takes the Lease, keeps it, gives it back. `clock` returns monotonic seconds and is the loop's own."""

    api: KubeApi
    terms: Terms
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    stamp: Callable[[], str] = wall_stamp
    claim: Claim = field(init=False)
    _failing: bool = False

    def __post_init__(self) -> None:
        self.claim = Claim(self.terms)

    def leads(self) -> bool:
        """Whether a write may begin."""
        return self.claim.left(self.clock()) > 0

    def budget(self) -> float:
        """Seconds that a write may take; raises NotLeading when none may begin."""
        if not self.leads():
            raise NotLeading(f"the Lease {self.terms.name} is not held by {self.terms.identity}: nothing is written")
        return self.claim.budget(self.clock())

    async def acquire(self) -> None:
        """Wait until this process leads; an API server that is away only makes it wait longer."""
        while not self.leads():
            await self.sleep(await self._attempt())
        log.info("leading", extra={"lease": self.terms.name, "holder": self.terms.identity})

    async def hold(self) -> NoReturn:
        """Renew for ever; raises NotLeading as soon as the Lease is lost or could not be renewed in time."""
        while True:
            left = self.claim.left(self.clock())
            await self.sleep(max(0.0, min(self.terms.retry_seconds, left)))
            await self._renew()

    async def release(self) -> None:
        """Let another lead at once. Call it when no write is under way. Without the Lease it writes nothing."""
        if not self.leads():
            return
        self.claim.drop()
        try:
            try:
                await self._bounded(self.api.replace(LEASES, self.claim.released(self.stamp())))
            except Conflict:
                # A renewal that was under way came first.
                self.claim.observe(await self._read(), self.clock())
                if self.claim.holder != self.terms.identity:
                    return
                await self._bounded(self.api.replace(LEASES, self.claim.released(self.stamp())))
        except ApiError as error:
            log.warning("the Lease is not given back, it will run out", extra={"error": str(error)})
            return
        log.info("gave the Lease back", extra={"lease": self.terms.name})

    async def _attempt(self) -> float:
        """Look, and take the Lease if it is free; returns the seconds until the next look, 0 when it is taken."""
        try:
            self.claim.observe(await self._read(), self.clock())
            wait = self.claim.wait(self.clock())
            if wait > 0:
                return min(self.terms.retry_seconds, wait)
            await self._write(self.claim.taken(self.stamp()))
        except (Conflict, NotFound):
            # Another was faster; the next look says who.
            return self.terms.retry_seconds
        except ApiError as error:
            self._told(error)
            return self.terms.retry_seconds
        return 0.0

    async def _renew(self) -> None:
        if not self.leads():
            raise NotLeading(f"the Lease {self.terms.name} was not renewed for {self.terms.deadline_seconds:g} s")
        try:
            await self._write(self.claim.renewed(self.stamp()))
        except (Conflict, NotFound):
            await self._look_again()
        except ApiError as error:
            self._told(error)

    async def _look_again(self) -> None:
        """The Lease changed under us: by a renewal of ours whose answer was lost, by a person, or by a new leader."""
        try:
            self.claim.observe(await self._read(), self.clock())
            if self.claim.holder != self.terms.identity:
                self.claim.drop()
                raise NotLeading(f"the Lease {self.terms.name} was taken by {self.claim.holder or 'nobody'}")
            if self.leads():
                await self._write(self.claim.renewed(self.stamp()))
        except ApiError as error:
            self._told(error)

    async def _read(self) -> Manifest | None:
        try:
            return await self._bounded(self.api.get(LEASES, self.terms.namespace, self.terms.name))
        except NotFound:
            return None

    async def _write(self, lease: Manifest) -> None:
        exists = "resourceVersion" in lease["metadata"]
        asked_at = self.clock()
        request = self.api.replace(LEASES, lease) if exists else self.api.create(LEASES, lease)
        self.claim.granted(await self._bounded(request), asked_at)
        self._failing = False

    async def _bounded(self, request: Coroutine[Any, Any, Manifest]) -> Manifest:
        """A request that hangs must leave time for another, and must not outlive the leader's deadline."""
        left = self.claim.left(self.clock())
        seconds = min(ELECTION_REQUEST_SECONDS, left) if left > 0 else ELECTION_REQUEST_SECONDS
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError as error:
            raise Unavailable(0, "NoAnswer", f"no answer about the Lease within {seconds:.1f} s") from error

    def _told(self, error: ApiError) -> None:
        """One line per outage."""
        if not self._failing:
            self._failing = True
            log.warning("the Lease cannot be read or written", extra={"error": str(error)})


class FencedApi:
    """`KubeApi` whose writes need the Lease: none begins without it, and none goes on until another may lead.

    A write that has begun is finished even if who asked for it is cancelled, so that `settled` tells the truth.
    """

    def __init__(self, api: KubeApi, elector: Elector) -> None:
        self._api = api
        self._elector = elector
        self._writes: set[asyncio.Task[Any]] = set()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        return await self._api.get(resource, namespace, name)

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> tuple[list[Manifest], str]:
        return await self._api.list(resource, namespace, labels)

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

    async def delete(  # noqa: PLR0913 - as in KubeApi
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        await self._write(
            lambda: self._api.delete(
                resource, namespace, name, uid=uid, resource_version=resource_version, grace_seconds=grace_seconds
            )
        )

    async def aclose(self) -> None:
        await self._api.aclose()

    async def settled(self) -> None:
        """Wait for the writes under way; each has its limit."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def _write(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.create_task(self._fenced(request))
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _fenced(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # Nothing may come between the look at the clock and the request: the process could be stopped there.
        budget = self._elector.budget()
        try:
            async with asyncio.timeout(budget):
                return await request()
        except TimeoutError as error:
            raise Unavailable(0, "NoAnswer", f"no answer within the {budget:.1f} s that the Lease leaves") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            # Whoever asked may be gone; an exception that nobody fetches is reported as an error of this program.
            task.exception()
