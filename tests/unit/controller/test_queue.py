"""The work queue: once per key, never two workers on one key, backoff per key."""

from __future__ import annotations

import asyncio

from qwen_operator.controller.queue import FREE_STEPS, LONGEST_ASKED_SECONDS, WorkQueue
from tests.unit.fakes import Clock

A, B = ("ns", "a"), ("ns", "b")


def _queue(clock: Clock, random: float = 0.0) -> WorkQueue:
    return WorkQueue(clock=clock.monotonic, random=lambda: random)


def test_what_is_added_twice_comes_once_in_order() -> None:
    queue = _queue(Clock())
    for key in (A, B, A):
        queue.add(key)
    assert [queue.take(), queue.take(), queue.take()] == [A, B, None]


def test_a_key_that_is_worked_on_comes_back_only_when_that_is_done() -> None:
    queue = _queue(Clock())
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    assert queue.take() is None
    assert len(queue) == 1
    queue.done(A)
    assert queue.take() == A
    queue.done(A)
    assert queue.take() is None


def test_an_appointment_is_kept_at_its_time_and_dropped_when_the_key_came_before() -> None:
    clock = Clock()
    queue = _queue(clock)
    queue.add_after(A, 10)
    queue.add_after(A, 20)
    clock.advance(9)
    assert queue.take() is None
    clock.advance(1)
    assert queue.take() == A
    queue.done(A)
    clock.advance(60)
    assert queue.take() is None
    queue.add_after(A, 10)
    queue.add(A)
    assert queue.take() == A
    queue.done(A)
    clock.advance(60)
    assert queue.take() is None


def test_steps_without_a_rest_are_braked_whatever_asks_for_the_key() -> None:
    clock = Clock()
    queue = _queue(clock)
    for _ in range(FREE_STEPS):
        queue.again(A)
        assert queue.take() == A
        queue.done(A)
    queue.again(A)
    queue.add(A)
    queue.add(B)
    assert [queue.take(), queue.take()] == [B, None]
    clock.advance(1)
    assert queue.take() == A
    queue.done(A)
    queue.forget(A)
    queue.again(A)
    assert queue.take() == A


def test_failures_wait_longer_and_longer_between_1_and_60_seconds_and_success_resets() -> None:
    queue = _queue(Clock())
    delays = [queue.retry(A) for _ in range(8)]
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    assert _queue(Clock(), random=1.0).retry(B) == 2
    queue.forget(A)
    assert queue.retry(A) == 1
    assert queue.retry(B, at_least=45) == 45


async def test_waiting_workers_each_get_a_key_as_soon_as_there_is_one() -> None:
    loop = asyncio.get_running_loop()
    queue = WorkQueue(clock=loop.time, random=lambda: 0.0)
    waiting = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add_after(B, 0.02)
    queue.add(A)
    assert set(await asyncio.wait_for(asyncio.gather(*waiting), 5)) == {A, B}


def test_how_long_the_oldest_waits_and_works() -> None:
    clock = Clock()
    queue = _queue(clock)
    assert (queue.age(), queue.busy()) == (0, 0)
    queue.add(A)
    clock.advance(3)
    queue.add(B)
    queue.add(A)
    assert queue.age() == 3
    assert queue.take() == A
    clock.advance(4)
    assert (queue.age(), queue.busy()) == (4, 4)
    assert queue.take() == B
    assert (queue.age(), queue.busy()) == (0, 4)
    queue.done(A)
    assert queue.busy() == 0
    queue.done(B)
    queue.add(A)
    queue.clear()
    assert queue.take() is None


def test_a_server_may_ask_for_a_longer_wait_but_not_for_any() -> None:
    queue = _queue(Clock())
    assert queue.retry(A, 30.0) == 30
    for seconds in (1e9, float("inf")):
        assert queue.retry(B, seconds) == LONGEST_ASKED_SECONDS
    assert queue.retry(("ns", "c"), float("nan")) == 1
