"""Who gets the GPUs: single cases, and clusters that live on by chance."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.arbiter.decide import decide
from qwen_operator.arbiter.ranks import rank
from qwen_operator.arbiter.types import Claim, Grant, Pool, Seat, Size

NODES = frozenset({"n1", "n2"})


def seats(*nodes: str, draining: bool = False) -> tuple[Seat, ...]:
    return tuple(Seat(f"r{index}", (node,) if node else (), draining) for index, node in enumerate(nodes))


def claim(name: str, priority: int, wanted: int, *held: str, least: int = 1, gpus: int = 1) -> Claim:
    return Claim(("team", name), priority, gpus, least, wanted, seats(*held), NODES)


HELD_BACK = Seat("r0", pins=("n1", "n2"), gated=True)


def wide(name: str, priority: int, wanted: int, *held: Seat, gpus: int = 2) -> Claim:
    """A deployment with replicas over two nodes."""
    return replace(claim(name, priority, wanted, gpus=gpus), pods=2, seats=held)


def asked(pool: Pool, *claims: Claim) -> list[Grant]:
    answer = decide(claims, pool)
    assert all(answer[one.key].asked == one.wanted for one in claims)
    assert all(answer[one.key].size in (None, Size("", one.gpus, one.pods)) for one in claims)
    return [replace(answer[one.key], asked=0, size=None) for one in claims]


TWO = Pool({"n1": 2, "n2": 2})
A, B = ("team", "a"), ("team", "b")
CASES: dict[str, tuple[Pool, tuple[Claim, ...], tuple[Grant, ...]]] = {
    "room for all": (
        TWO,
        (claim("a", 0, 2), claim("b", 0, 2)),
        (Grant(2, places=(("n1",), ("n2",))), Grant(2, places=(("n1",), ("n2",)))),
    ),
    "an extra one drains for a higher priority, whose pod waits": (
        TWO,
        (claim("a", 9, 2, "n1"), claim("b", 0, 3, "n1", "n2", "n2")),
        (Grant(1, waits_for=(B,)), Grant(2, drains=("r0",), waits_for=(A,))),
    ),
    "and its place is for nobody else": (
        TWO,
        (
            claim("a", 9, 2, "n1"),
            replace(claim("b", 0, 3), seats=(Seat("r0", ("n1",), draining=True), *seats("n2", "n2"))),
        ),
        (Grant(1, waits_for=(B,)), Grant(2, waits_for=(A,))),
    ),
    "when it is gone, the pod comes": (
        TWO,
        (claim("a", 9, 2, "n1"), claim("b", 0, 3, "n2", "n2")),
        (Grant(2, places=(("n1",),)), Grant(2, waits_for=(A,))),
    ),
    "guaranteed replicas stay, whatever the extra one's priority": (
        TWO,
        (claim("a", 9, 2, "n1"), claim("b", 0, 3, "n1", "n2", "n2", least=3)),
        (Grant(1, waits_for=(B,)), Grant(3)),
    ),
    "a guaranteed one of a higher priority comes first": (
        TWO,
        (claim("a", 9, 2, "n1", least=2), claim("b", 0, 3, "n1", "n2", "n2", least=3)),
        (Grant(1, waits_for=(B,)), Grant(2, drains=("r0",), waits_for=(A,))),
    ),
    "a guaranteed one takes an extra one of the same priority": (
        TWO,
        (claim("a", 0, 1), claim("b", 0, 4, "n1", "n1", "n2", "n2")),
        (Grant(0, waits_for=(B,)), Grant(3, drains=("r0",))),
    ),
    "who misses more of its extra replicas gets one": (
        TWO,
        (claim("a", 0, 3, "n1"), claim("b", 0, 3, "n1", "n2", "n2")),
        (Grant(1, waits_for=(B,)), Grant(2, drains=("r0",), waits_for=(A,))),
    ),
    "and who misses as much gets none": (
        TWO,
        (claim("a", 0, 3, "n1", "n1"), claim("b", 0, 3, "n2", "n2")),
        (Grant(2, waits_for=(B,)), Grant(2, waits_for=(A,))),
    ),
    "a drain that nobody needs ends": (
        TWO,
        (claim("a", 9, 1, "n1"), replace(claim("b", 0, 3), seats=(*seats("n2", "n2"), Seat("r7", ("n1",), True)))),
        (Grant(1), Grant(3, returns=("r7",))),
    ),
    "two small ones on one node make room for a large one": (
        TWO,
        (claim("a", 9, 1, gpus=2), claim("b", 0, 4, "n1", "n2", "n2", "n1")),
        (Grant(0, waits_for=(B,)), Grant(2, drains=("r0", "r3"))),
    ),
    "a lower one gets its first replica from the extra ones of a higher one": (
        TWO,
        (claim("a", 9, 4, "n1", "n1", "n2", "n2"), claim("b", 0, 2)),
        (Grant(3, drains=("r0",), waits_for=()), Grant(0, waits_for=(A,))),
    ),
    "each pod has its own place": (
        TWO,
        (claim("a", 9, 2, least=2), claim("b", 0, 2, least=2)),
        (Grant(2, places=(("n1",), ("n1",))), Grant(2, places=(("n2",), ("n2",)))),
    ),
    "a pod that may go to one node only disturbs nobody": (
        TWO,
        (claim("a", 9, 2, least=2), replace(claim("b", 0, 1), seats=(Seat("r0", pins=("n2",)),))),
        (Grant(2, places=(("n2",), ("n1",))), Grant(1)),
    ),
    "a pod whose node is full goes back": (
        TWO,
        (claim("a", 0, 2, "n1", "n1"), replace(claim("b", 9, 1), seats=(Seat("r0", pins=("n1",)),))),
        (Grant(2), Grant(1, drains=("r0",), places=(("n2",),))),
    ),
    "and one that the scheduler does not take": (
        TWO,
        (replace(claim("b", 9, 1), seats=(Seat("r0", pins=("n1",), stuck=True),)),),
        (Grant(1, drains=("r0",), places=(("n1",),)),),
    ),
    "a replica over two nodes takes none while it cannot have both": (
        TWO,
        (replace(claim("a", 0, 1, gpus=2), pods=2), claim("b", 0, 2, "n1")),
        (Grant(0, waits_for=(B,)), Grant(2, places=(("n1",),))),
    ),
    "and gets both when others have drained": (
        TWO,
        (replace(claim("a", 9, 1, gpus=2), pods=2), claim("b", 0, 2, "n1", "n2")),
        (Grant(0, waits_for=(B,)), Grant(0, drains=("r0", "r1"))),
    ),
    "a replica over two nodes gives up both": (
        TWO,
        (
            claim("a", 9, 1),
            replace(claim("b", 0, 2), pods=2, seats=(Seat("w0", ("n1", "n2")), Seat("w1", ("n1", "n2")))),
        ),
        (Grant(0, waits_for=(B,)), Grant(1, drains=("w0",))),
    ),
    "a node without memory is none for it": (
        replace(TWO, full=frozenset({(A, "n1")})),
        (claim("a", 9, 2, gpus=2), claim("b", 0, 1, "n1")),
        (Grant(1, waits_for=(B,), places=(("n2",),)), Grant(1)),
    ),
    "nobody drains for a pod with rules about others": (
        TWO,
        (replace(claim("a", 9, 1), drains_others=False), claim("b", 0, 4, "n1", "n1", "n2", "n2")),
        (Grant(0, waits_for=(B,)), Grant(4)),
    ),
    "a pod without a node goes back before it ends one of a lower priority": (
        TWO,
        (claim("a", 9, 1, "", gpus=2), claim("b", 0, 2, "n1", "n2", least=2)),
        (Grant(0, drains=("r0",), waits_for=(B,)), Grant(1, drains=("r0",))),
    ),
    "a place that gets empty is for nobody else": (
        TWO,
        (
            claim("a", 5, 1, gpus=2),
            claim("b", 0, 2, "n2"),
            replace(claim("c", 0, 1), seats=(Seat("r0", ("n1",), draining=True), Seat("r1", ("n2",)))),
        ),
        (Grant(0, waits_for=(("team", "c"), B)), Grant(1, waits_for=(("team", "c"),)), Grant(1)),
    ),
    "nobody drains while pods of others end": (
        Pool({"n1": 1, "n2": 2}, coming={"n1": 1}),
        (claim("a", 9, 1), claim("b", 0, 3, "n1", "n2", "n2")),
        (Grant(0, waits_for=(B,)), Grant(3)),
    ),
    "but for what they do not give back": (
        Pool({"n1": 1, "n2": 2}, coming={"n1": 1}),
        (claim("a", 9, 2, least=2), claim("b", 0, 3, "n1", "n2", "n2")),
        (Grant(0, waits_for=(B,)), Grant(2, drains=("r0",))),
    ),
    "a pod that may still go to either node takes room of both": (
        TWO,
        (claim("a", 9, 1, gpus=2), claim("b", 0, 1, "", gpus=2)),
        (Grant(0), Grant(1)),
    ),
    "but only as much as it needs": (
        TWO,
        (claim("a", 9, 1), claim("b", 0, 1, "")),
        (Grant(1, places=(("n1",),)), Grant(1)),
    ),
    "and only of nodes where it may go": (
        Pool({"n1": 2, "n2": 2, "n3": 2}),
        (replace(claim("a", 9, 1, gpus=2), nodes=frozenset({"n1", "n2", "n3"})), claim("b", 0, 1, "", gpus=2)),
        (Grant(1, places=(("n3",),)), Grant(1)),
    ),
    "a replica that does not come to its end keeps nobody waiting": (
        TWO,
        (
            claim("a", 9, 1, gpus=2),
            claim("b", 0, 2, "n2", "n2"),
            replace(claim("c", 0, 0), seats=(Seat("r0", ("n1",), draining=True, late=("n1",)),)),
        ),
        (Grant(0, waits_for=(B, ("team", "c"))), Grant(0, drains=("r0", "r1"), waits_for=(("team", "c"),)), Grant(0)),
    ),
    "not even its own deployment": (
        TWO,
        (replace(claim("a", 0, 1), seats=(Seat("r0", ("n1",), draining=True, late=("n1",)),)), claim("b", 9, 0)),
        (Grant(1, places=(("n1",),)), Grant(0)),
    ),
    "a replica that is held back goes for a higher one": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 1, HELD_BACK)),
        (Grant(0), Grant(0, drains=("r0",))),
    ),
    "also one that may go to any node": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 1, Seat("r0", gated=True))),
        (Grant(0), Grant(0, drains=("r0",))),
    ),
    "and before one that runs": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 1, HELD_BACK, gpus=1), claim("c", 5, 2, "n1", "n2", least=2)),
        (Grant(0, waits_for=(("team", "c"),)), Grant(0, drains=("r0",), waits_for=(("team", "c"),)), Grant(2)),
    ),
    "but after one that has less right to its place": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 1, HELD_BACK, gpus=1), claim("c", 0, 2, "n1", "n2")),
        (Grant(0, waits_for=(("team", "c"),)), Grant(1), Grant(1, drains=("r0",))),
    ),
    "and before one of its own that runs": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 2, Seat("w0", ("n1", "n2")), HELD_BACK, gpus=1)),
        (Grant(0, waits_for=(B,)), Grant(1, drains=("r0",))),
    ),
    "but not for an equal one": (
        TWO,
        (claim("a", 0, 1), wide("b", 0, 1, HELD_BACK)),
        (Grant(0), Grant(1)),
    ),
    "and not if that is not enough": (
        TWO,
        (wide("a", 9, 1), wide("b", 0, 1, HELD_BACK, gpus=1), claim("c", 9, 1, "n1")),
        (Grant(0, waits_for=(("team", "c"),)), Grant(1), Grant(1)),
    ),
    "nor once its pods may get nodes": (
        TWO,
        (claim("a", 9, 1), wide("b", 0, 1, replace(HELD_BACK, gated=False))),
        (Grant(0), Grant(1)),
    ),
    "an overfull node promises nothing": (
        Pool({"n1": 1, "n2": 0}),
        (claim("a", 9, 1), claim("b", 0, 2, "n1", "n1")),
        (Grant(0, waits_for=(B,)), Grant(2)),
    ),
}


@pytest.mark.parametrize(("pool", "claims", "grants"), CASES.values(), ids=CASES.keys())
def test_who_gets_what(pool: Pool, claims: tuple[Claim, ...], grants: tuple[Grant, ...]) -> None:
    assert asked(pool, *claims) == list(grants)


@dataclass
class Cluster:
    """Nodes, deployments that do what the arbiter grants, and a scheduler that ends pods of a lower priority."""

    pool: Pool
    claims: dict[tuple[str, str], Claim]
    chance: random.Random
    made: int = 0
    moves: int = 0

    def step(self) -> None:
        answer = decide(tuple(self.claims.values()), self.pool)
        self.moves = 0
        for key, grant in answer.items():
            assert 0 <= grant.replicas <= self.claims[key].wanted
            self._follow(key, grant)
        # The pods may be made seconds apart, in any order.
        for key in self.chance.sample(sorted(self.claims), len(self.claims)):
            self._schedule(key)
        for key, one in self.claims.items():
            left = tuple(seat for seat in one.seats if not seat.draining or self.chance.random() > 0.3)
            self.claims[key] = replace(one, seats=left)

    def _follow(self, key: tuple[str, str], grant: Grant) -> None:
        """What the operator does: drain, cancel a drain, create."""
        one = self.claims[key]
        state = {seat.name: seat for seat in one.seats}
        serving = [seat for seat in one.seats if not seat.draining and seat.name not in grant.drains]
        excess = serving[: max(0, len(serving) - grant.replicas)]
        for name in (*grant.drains, *(seat.name for seat in excess)):
            if state[name].nodes:
                state[name] = replace(state[name], draining=True)
            else:
                del state[name]
            self.moves += 1
        for name in grant.returns:
            state[name] = replace(state[name], draining=False)
            self.moves += 1
        missing = grant.replicas - sum(not seat.draining for seat in state.values())
        assert missing <= len(grant.places)
        for place in grant.places[: max(0, missing)]:
            self.made += 1
            state[f"p{self.made}"] = Seat(f"p{self.made}", pins=place, gated=one.pods > 1)
            self.moves += 1
        self.claims[key] = replace(one, seats=tuple(state.values()))

    def _free(self, node: str) -> int:
        used = sum(one.gpus for one in self.claims.values() for seat in one.seats if node in seat.nodes)
        return self.pool.nodes[node] - used

    def _schedule(self, key: tuple[str, str]) -> None:
        one = self.claims[key]
        for seat in [seat for seat in one.seats if not seat.nodes]:
            if seat.gated and self.chance.random() < 0.5:
                # The operator does not remove the gates yet.
                continue
            assert all(self._free(node) >= one.gpus for node in seat.pins), f"the scheduler ends somebody for {key}"
            now = replace(seat, nodes=seat.pins, pins=(), gated=False)
            one = replace(one, seats=tuple(now if other is seat else other for other in one.seats))
            self.claims[key] = one

    def settle(self, steps: int) -> None:
        """Until nothing moves for a while."""
        quiet = 0
        for _ in range(steps):
            self.step()
            busy = self.moves or any(seat.draining or seat.gated for one in self.claims.values() for seat in one.seats)
            quiet = 0 if busy else quiet + 1
            if quiet > 5:
                return
        raise AssertionError("it does not come to rest")

    def held(self, key: tuple[str, str]) -> int:
        return sum(not seat.draining for seat in self.claims[key].seats)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    nodes = {f"n{index}": draw(st.sampled_from([1, 2, 4, 8])) for index in range(draw(st.integers(1, 4)))}
    claims = {}
    for index in range(draw(st.integers(1, 5))):
        usable = draw(st.sets(st.sampled_from(sorted(nodes)), min_size=1))
        claims["team", f"d{index}"] = Claim(
            ("team", f"d{index}"),
            draw(st.sampled_from([0, 0, 10, 20])),
            draw(st.sampled_from([1, 1, 2, 4])),
            draw(st.integers(0, 3)),
            draw(st.integers(0, 8)),
            nodes=frozenset(usable),
            pods=draw(st.sampled_from([1, 1, 1, 2])),
        )
    return Cluster(Pool(nodes), claims, random.Random(draw(st.integers(0, 999))))


@settings(max_examples=300, deadline=None)
@given(clusters(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=6))
def test_by_chance_no_pod_is_ended_and_everything_comes_to_rest(
    cluster: Cluster, changes: list[tuple[int, int]]
) -> None:
    """Wants change, and each time the cluster comes to rest, so nothing wanders. At every step the scheduler ends
    nothing."""
    cluster.settle(400)
    for index, wanted in changes:
        key = ("team", f"d{index % len(cluster.claims)}")
        cluster.claims[key] = replace(cluster.claims[key], wanted=wanted)
        for _ in range(3):
            cluster.step()
    cluster.settle(400)
    for key, one in cluster.claims.items():
        assert cluster.held(key) <= one.wanted
        if cluster.held(key) == one.wanted:
            continue
        rooms = [node for node in one.nodes if cluster._free(node) >= one.gpus]
        assert len(rooms) < one.pods, "GPUs are free, and somebody waits"
        takes = [node for node in one.nodes if cluster._free(node) + _could_take(cluster, one, node) >= one.gpus]
        assert one.pods > 1 or not takes, f"{key} waits for nothing"


def _could_take(cluster: Cluster, one: Claim, node: str) -> int:
    """The GPUs on a node that the next replica of a deployment may take."""
    wish, total = rank(one, cluster.held(one.key)), 0
    for other in cluster.claims.values():
        there = sum(node in seat.nodes for seat in other.seats) if other.key != one.key else 0
        held = cluster.held(other.key)
        total += other.gpus * sum(wish.may_take(rank(other, held - lost)) for lost in range(1, there + 1))
    return total


@settings(max_examples=100, deadline=None)
@given(clusters())
def test_the_order_of_the_deployments_says_nothing(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.step()
    claims = list(cluster.claims.values())
    assert decide(claims, cluster.pool) == decide(claims[::-1], cluster.pool)
