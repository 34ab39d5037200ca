"""Two operators, one Lease, and everything that can happen to one of them. In virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest

from qwen_operator.kube import LEASES, SECRETS, Conflict, DeleteOptions, KubeApi, Manifest, Unavailable
from qwen_operator.kube.lease import Candidate, Elector, FencedApi, NotLeading, Terms
from tests.unit.fakes import Crash, FakeKube, Write
from tests.unit.virtual import virtually

NAME = "qwen-operator"
HEAD: Manifest = {
    "apiVersion": LEASES.api_version,
    "kind": LEASES.kind,
    "metadata": {"name": NAME, "namespace": "system"},
}


def secret(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "n"}}


@dataclass
class Done:
    """A write that the API server carried out: when it came and by whom."""

    at: float
    who: str
    verb: str
    kind: str


@dataclass
class Process:
    """One operator process that does nothing but write a Secret every half second while it leads.

    `freeze` is SIGSTOP: time goes on, but nothing that the process waits for comes to it. `kill` is SIGKILL,
    `stop` SIGTERM.
    """

    who: str
    kube: FakeKube
    done: list[Done]
    wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    away: bool = False
    hangs: bool = False
    latency: float = 0.01
    ended: BaseException | str | None = None
    running: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.running.set()
        loop = asyncio.get_running_loop()
        terms = Terms("system", NAME, self.who)
        self.elector = Elector(cast("KubeApi", Wire(self)), terms, loop.time, self.sleep, self.stamp)
        self.api = FencedApi(self.elector.api, self.elector)
        self.task = loop.create_task(self._main())

    def stamp(self) -> str:
        now = self.wall + timedelta(seconds=asyncio.get_running_loop().time())
        return now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.scheduled()

    async def scheduled(self) -> None:
        """Come here after every wait: a stopped process learns of nothing, not even of its own time-outs."""
        cancelled = False
        while not self.running.is_set():
            try:
                await self.running.wait()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def freeze(self) -> None:
        self.running.clear()

    def thaw(self) -> None:
        self.running.set()

    async def kill(self) -> None:
        self.away = True
        self.task.cancel()
        await asyncio.wait([self.task])

    async def stop(self) -> None:
        """As main.py does it."""
        self.work.cancel()
        await asyncio.wait([self.work])
        await self.api.settled()
        await self.elector.release()

    async def _main(self) -> None:
        try:
            await self.elector.acquire()
        except Crash:
            self.ended = "crashed"
            return
        self.work = asyncio.create_task(self._work())
        parts = [self.work, asyncio.create_task(self.elector.hold())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
        errors = [error for error in results if not isinstance(error, asyncio.CancelledError)]
        self.ended = "crashed" if any(isinstance(error, Crash) for error in errors) else errors[0] if errors else None

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await self.api.create(SECRETS, secret(f"{self.who}-{len(self.kube.writes)}"))
            await self.sleep(0.5)


class Wire:
    """The way of one process to the API server."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return partial(self._call, name)

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        process = self._process
        await asyncio.sleep(process.latency / 2)
        if process.away:
            await asyncio.sleep(1e9 if process.hangs else 0)
            raise Unavailable(0, "NoAnswer", "no route")
        before = len(process.kube.writes)
        try:
            answer = await getattr(process.kube, name)(*arguments, **options)
        finally:
            for write in process.kube.writes[before:]:
                now = asyncio.get_running_loop().time()
                process.done.append(Done(now, process.who, write.verb, write.resource.plural))
        await asyncio.sleep(process.latency / 2)
        await process.scheduled()
        return answer


@dataclass
class World:
    """The API server and what it saw; `first` leads when it is entered."""

    kube: FakeKube = field(default_factory=FakeKube)
    done: list[Done] = field(default_factory=list)

    async def start(self) -> World:
        self.first = Process("a", self.kube, self.done)
        await asyncio.sleep(1)
        self.second = Process("b", self.kube, self.done)
        await asyncio.sleep(9.3)
        assert self.writers() == {"a"}
        return self

    def writers(self, since: float = 0.0) -> set[str]:
        return {one.who for one in self.done if one.at >= since}

    def first_write(self, who: str) -> float:
        return next(one.at for one in self.done if one.who == who and one.kind == "secrets")

    def last_write(self, who: str) -> float:
        return max(one.at for one in self.done if one.who == who)

    def check_one_at_a_time(self) -> None:
        """Nobody writes after another began to, the Lease included."""
        order = [one.who for one in self.done]
        assert order == sorted(order), "writes of two leaders are mixed"


def now() -> float:
    return asyncio.get_running_loop().time()


def scenario(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        world = await World().start()
        try:
            await test(world)
            world.check_one_at_a_time()
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    def wrapped() -> None:
        virtually(run)

    return wrapped


@scenario
async def test_the_leader_dies_and_the_other_writes_within_18_seconds(world: World) -> None:
    await world.first.kill()
    died = now()
    await asyncio.sleep(30)

    assert died + 10 < world.first_write("b") < died + 18


@scenario
async def test_a_leader_that_was_stopped_for_40_seconds_ends_without_a_write(world: World) -> None:
    world.first.freeze()
    stopped = now()
    await asyncio.sleep(40)
    world.first.thaw()
    await asyncio.sleep(5)

    assert world.first_write("b") < stopped + 18
    assert isinstance(world.first.ended, NotLeading)
    # One that was on its way to the API server when the process stopped may still arrive there.
    assert world.last_write("a") <= stopped + 0.1


@pytest.mark.parametrize("seconds", [1.0, 7.5, 9.9, 10.1, 12.0, 14.9, 15.1, 17.0, 19.0])
@pytest.mark.parametrize("phase", [0.0, 0.004, 0.006, 0.3, 1.4, 1.999])
def test_however_long_a_leader_is_stopped_two_never_write(seconds: float, phase: float) -> None:
    @scenario
    async def test(world: World) -> None:
        await asyncio.sleep(phase)
        world.first.freeze()
        stopped = now()
        await asyncio.sleep(seconds)
        world.first.thaw()
        await asyncio.sleep(0.7)
        if seconds > 10:
            assert isinstance(world.first.ended, NotLeading)
            assert world.last_write("a") <= stopped + 0.1
        await asyncio.sleep(30)
        # The last renewal was up to 2 s before the stop.
        assert world.writers(now() - 5) in [{"b"}] * (seconds > 8) + [{"a"}] * (seconds < 10)

    test()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_leader_without_api_server_gives_up_before_another_may_begin(hangs: bool) -> None:
    @scenario
    async def test(world: World) -> None:
        world.first.away, world.first.hangs = True, hangs
        cut = now()
        await asyncio.sleep(10.1)
        assert isinstance(world.first.ended, NotLeading)
        assert world.writers(cut + 0.1) == set()
        await asyncio.sleep(10)
        assert cut + 13 < world.first_write("b") < cut + 18

    test()


@scenario
async def test_an_outage_for_all_ends_the_leader_and_afterwards_somebody_leads(world: World) -> None:
    world.first.away = world.second.away = True
    await asyncio.sleep(60)
    world.second.away = False
    back = now()
    await asyncio.sleep(20)

    assert isinstance(world.first.ended, NotLeading)
    # The other may not have seen the last renewal before, and then has to wait out its duration.
    assert world.first_write("b") < back + 17


@scenario
async def test_a_short_outage_changes_nothing(world: World) -> None:
    world.first.away = True
    await asyncio.sleep(6)
    world.first.away = False
    await asyncio.sleep(60)

    assert world.writers() == {"a"}
    assert world.first.ended is None


@pytest.mark.parametrize("skew", [-86400, -7, 7, 86400])
def test_the_wall_clocks_do_not_matter(skew: int) -> None:
    @scenario
    async def test(world: World) -> None:
        world.first.wall += timedelta(seconds=skew)
        await asyncio.sleep(60)
        assert world.writers() == {"a"}
        world.first.wall -= timedelta(seconds=2 * skew)
        await asyncio.sleep(60)
        assert world.writers() == {"a"}
        await world.first.kill()
        died = now()
        await asyncio.sleep(30)
        assert world.first_write("b") < died + 18

    test()


@scenario
async def test_a_leader_that_ends_in_order_hands_over_at_once_and_with_nothing_under_way(world: World) -> None:
    world.first.latency = 1.5
    await asyncio.sleep(0.6)
    asked = now()
    world.first.latency = 0.01
    await world.first.stop()
    released = now()
    await asyncio.sleep(3)

    last = [one.kind for one in world.done if one.who == "a" and one.at > asked]
    assert last == ["secrets", "leases"], "what was under way is finished, then the Lease is given back"
    assert world.first_write("b") < released + 2.1
    with pytest.raises(NotLeading):
        await world.first.api.create(SECRETS, secret("late"))


@pytest.mark.parametrize("holder", ["a", "c"])
def test_a_lease_that_changed_meanwhile_is_given_back_if_it_is_still_ours(holder: str) -> None:
    async def run() -> None:
        world = await World().start()
        world.kube.edit(LEASES, NAME, lambda lease: lease["spec"].update(holderIdentity=holder, renewTime="now"))
        await world.first.stop()
        assert world.kube.one(LEASES, NAME)["spec"]["holderIdentity"] == ("" if holder == "a" else "c")
        await _end()

    virtually(run)


async def test_who_does_not_lead_gives_nothing_back() -> None:
    kube = FakeKube()
    kube.put(LEASES, {**HEAD, "spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}})
    elector = Elector(kube, Terms("system", NAME, "a"), asyncio.get_running_loop().time)
    elector.candidate.observe(kube.one(LEASES, NAME), 0.0)
    await elector.release()

    assert kube.writes == []


@scenario
async def test_a_person_who_edits_the_lease_disturbs_nobody(world: World) -> None:
    for _ in range(20):
        await asyncio.sleep(1.7)
        world.kube.edit(LEASES, NAME, lambda lease: lease["metadata"].update(labels={"at": str(now())}))

    assert world.writers() == {"a"}
    assert world.first.ended is None


@scenario
async def test_a_person_who_gives_the_lease_away_ends_the_leader(world: World) -> None:
    world.kube.edit(LEASES, NAME, lambda lease: lease["spec"].update(holderIdentity="c"))
    await asyncio.sleep(3)
    assert isinstance(world.first.ended, NotLeading)
    assert "a lost the Lease qwen-operator: c holds it now" in str(world.first.ended)
    await asyncio.sleep(20)
    assert world.writers(now() - 3) == {"b"}


@scenario
async def test_a_deleted_lease_is_no_invitation(world: World) -> None:
    await asyncio.sleep(0.9)
    world.kube.finish(world.kube.one(LEASES, NAME), LEASES)
    await asyncio.sleep(60)

    assert world.writers() == {"a"}
    assert world.kube.one(LEASES, NAME)["spec"]["holderIdentity"] == "a"


@scenario
async def test_a_deleted_lease_of_a_dead_leader_is_taken_in_time(world: World) -> None:
    await world.first.kill()
    died = now()
    world.kube.finish(world.kube.one(LEASES, NAME), LEASES)
    await asyncio.sleep(30)

    assert world.first_write("b") < died + 18


@pytest.mark.parametrize("lost", range(6))
def test_an_answer_that_is_lost_costs_nobody_the_lease(lost: int) -> None:
    async def run() -> None:
        kube, seen = FakeKube(), [0]

        def after(_number: int, write: Write) -> None:
            if write.resource == LEASES:
                seen[0] += 1
                if seen[0] == lost + 1:
                    raise Unavailable(0, "AnswerLost", "reset")

        kube.after = after
        world = World(kube)
        await world.start()
        await asyncio.sleep(30)
        assert world.writers() == {"a"}
        await _end()

    virtually(run)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_death_at_any_write_of_the_election_leads_to_one_leader(moment: str, number: int) -> None:
    async def run() -> None:
        kube, seen = FakeKube(), [0]

        def dies(_number: int, write: Write) -> None:
            if write.resource == LEASES:
                seen[0] += 1
                if seen[0] == number + 1:
                    raise Crash

        setattr(kube, moment, dies)
        done: list[Done] = []
        processes = [Process(who, kube, done) for who in "ab"]
        await asyncio.sleep(60)
        assert [process.ended for process in processes].count("crashed") == 1
        survivor = next(process for process in processes if process.ended is None)
        assert {one.who for one in done if one.at > now() - 5} == {survivor.who}
        secrets = [one.who for one in done if one.kind == "secrets"]
        assert secrets in (sorted(secrets), sorted(secrets, reverse=True))
        await _end()

    virtually(run)


def test_two_that_start_at_once_elect_one() -> None:
    async def run() -> None:
        done: list[Done] = []
        kube = FakeKube()
        for who in "abc":
            Process(who, kube, done)
        await asyncio.sleep(60)
        assert len({one.who for one in done if one.kind == "secrets"}) == 1
        await _end()

    virtually(run)


def test_a_write_that_hangs_is_given_up_before_the_lease_ends() -> None:
    async def run() -> None:
        world = await World().start()
        world.first.away = world.first.hangs = True
        started = now()
        assert world.first.elector.leads()
        with pytest.raises(Unavailable, match="that the Lease leaves"):
            await world.first.api.create(SECRETS, secret("late"))
        # Renewed at most 2 s before, and a second is kept for clocks that run differently.
        assert 12 - 0.1 <= now() - started <= 14
        await _end()

    virtually(run)


def test_without_the_lease_nothing_is_written_and_everything_is_read() -> None:
    async def run() -> None:
        kube = FakeKube()
        process = Process("a", kube, [], away=True)
        api = FencedApi(kube, process.elector)
        manifest = secret("s")
        kube.put(SECRETS, manifest)
        assert (await api.get(SECRETS, "n", "s"))["metadata"]["name"] == "s"
        assert len((await api.list(SECRETS, None))[0]) == 1
        for write in (
            api.create(SECRETS, manifest),
            api.replace(SECRETS, manifest),
            api.patch(SECRETS, "n", "s", {}),
            api.apply_status(SECRETS, manifest, manager="m"),
            api.delete(SECRETS, "n", "s", DeleteOptions("u")),
        ):
            with pytest.raises(NotLeading, match="a does not hold the Lease"):
                await write
        await process.elector.release()
        assert kube.writes == []
        await _end()

    virtually(run)


def test_the_lease_says_who_and_since_when() -> None:
    async def run() -> None:
        world = await World().start()
        taken = world.kube.one(LEASES, NAME)["spec"]
        assert taken["holderIdentity"] == "a"
        assert taken["leaseDurationSeconds"] == 15
        assert (taken["leaseTransitions"], taken["acquireTime"]) == (0, "2026-01-01T00:00:00.005000Z")
        assert taken["renewTime"] > "2026-01-01T00:00:08"
        await world.first.kill()
        await asyncio.sleep(30)
        assert world.kube.one(LEASES, NAME)["spec"]["leaseTransitions"] == 1
        await _end()

    virtually(run)


async def _end() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def lease(holder: str, **spec: Any) -> Manifest:
    return {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": holder, "renewTime": "t", **spec}}


@pytest.mark.parametrize(
    ("seen", "now", "wait"),
    [
        ([(0.0, None)], 0.0, 0.0),
        ([(0.0, lease("", leaseDurationSeconds=15))], 0.0, 0.0),
        ([(0.0, lease("me", leaseDurationSeconds=15))], 1.0, 0.0),
        ([(0.0, lease("you", leaseDurationSeconds=15))], 0.0, 15.0),
        ([(0.0, lease("you", leaseDurationSeconds=15)), (10.0, lease("you", leaseDurationSeconds=15))], 10.0, 5.0),
        ([(0.0, lease("you", leaseDurationSeconds=15)), (10.0, lease("you", renewTime="u"))], 10.0, 15.0),
        ([(0.0, lease("you", leaseDurationSeconds=40))], 20.0, 20.0),
        ([(0.0, lease("you", leaseDurationSeconds=0))], 14.0, 1.0),
        ([(0.0, lease("you", leaseDurationSeconds="soon"))], 14.0, 1.0),
        ([(0.0, lease("you", leaseDurationSeconds=15)), (5.0, None)], 5.0, 10.0),
        ([(0.0, {"metadata": {}})], 0.0, 0.0),
    ],
)
def test_when_the_lease_may_be_taken(seen: list[tuple[float, Manifest | None]], now: float, wait: float) -> None:
    candidate = Candidate(Terms("system", NAME, "me"))
    for at, manifest in seen:
        candidate.observe(manifest, at)

    assert candidate.wait(now) == wait


def test_a_taken_lease_keeps_what_is_not_ours() -> None:
    candidate = Candidate(Terms("system", NAME, "me"))
    taken = lease("", leaseTransitions=4, strategy="OldestEmulationVersion")
    taken["metadata"]["labels"] = {"team": "x"}
    candidate.observe(taken, 0.0)

    assert candidate.taken("now") == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"resourceVersion": "1", "labels": {"team": "x"}},
        "spec": {
            "holderIdentity": "me",
            "leaseDurationSeconds": 15,
            "acquireTime": "now",
            "renewTime": "now",
            "leaseTransitions": 5,
            "strategy": "OldestEmulationVersion",
        },
    }


async def test_a_lease_that_another_took_first_is_a_conflict_for_the_api_server_too() -> None:
    kube = FakeKube()
    one = await kube.create(LEASES, {**lease("a"), **HEAD})
    await kube.replace(LEASES, {**one, "spec": {"holderIdentity": "b"}})
    with pytest.raises(Conflict):
        await kube.replace(LEASES, {**one, "spec": {"holderIdentity": "c"}})
