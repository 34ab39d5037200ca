"""A short run of the loss table, with all real programs of the gateway pod."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from bench.loss.engine import MODEL, POISON
from bench.loss.picture import picture
from bench.loss.run import Load, run
from bench.loss.world import KILLS, killed, world
from tests.unit.gateway.proxied import gateway


# The whole table takes minutes: make bench-loss.
@pytest.mark.parametrize("event", ["rolled out", "put to sleep and woken", "replaced", "killed"])
def test_nothing_is_lost(event: str, tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        result = asyncio.run(run(running, event, Load(cycles=1, clients=8, pause=1)))
    assert result.tally.lost == {}
    assert result.twice == []
    if event != "rolled out":
        assert result.held >= 4
    assert len(result.tally.answered) > result.held
    assert event in KILLS or not result.tally.cut
    assert picture(result).startswith("<svg")


def test_nothing_is_lost_while_a_replica_over_two_nodes_moves(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        result = asyncio.run(run(running, "two nodes, one cordoned", Load(cycles=1, clients=8, pause=1)))
    assert result.tally.lost == {}
    assert result.twice == []
    assert not result.tally.cut
    # The event is over when the successor is ready. Whether it gets a request in time is up to the router.
    assert len({engine for engine, *_ in result.notes}) >= 2


def test_a_request_that_ends_engines_is_sent_twice_and_no_more(tmp_path: Path) -> None:
    async def ask() -> tuple[int, str, str | None, list[str]]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "0"}], "user": POISON}
        headers = {"Authorization": "Bearer key-all"}
        async with world(running, tmp_path / "engines") as made, aiohttp.ClientSession(running.url) as session:
            asked = asyncio.create_task(session.post("/v1/chat/completions", json=body, headers=headers))
            for _ in range(2):
                await asyncio.to_thread(made.engine.wait)
                await killed(made)
            answer = await asked
            code = (await answer.json())["error"]["code"]
            begins = [engine for engine, _, what, ident in made.notes() if (what, ident) == ("begin", POISON)]
            served = await asyncio.to_thread(running.chat, MODEL, user="other")
            assert served.status_code == 200
            return answer.status, code, answer.headers.get("x-should-retry"), begins

    with gateway(tmp_path) as running:
        assert asyncio.run(ask()) == (500, "replica_ended", "false", ["engine-001", "engine-002"])
