"""How many pages are read at the same time, and that slow engines delay no others."""

from __future__ import annotations

import asyncio

from qwen_operator.controller.in_hand import InHand


async def test_no_more_pages_than_the_process_can_handle() -> None:
    hand, ends = InHand(2), [asyncio.Event() for _ in range(3)]
    pages = [asyncio.create_task(hand.count(asyncio.Event.wait, end)) for end in ends[:2]]
    await asyncio.sleep(0)
    room = asyncio.create_task(hand.room())
    await asyncio.sleep(0)
    assert not room.done()
    ends[0].set()
    await room
    for end in ends:
        end.set()
    assert await asyncio.gather(*pages) == [True, True]
    await hand.room()


async def test_engines_that_do_not_answer_leave_room_for_others() -> None:
    hand, never = InHand(2), asyncio.Event()
    pages = [asyncio.create_task(hand.count(asyncio.Event.wait, never)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.wait_for(hand.room(), 60)
    assert not any(page.done() for page in pages)
    never.set()
    await asyncio.gather(*pages)


async def test_a_page_that_fails_leaves_room() -> None:
    async def fails(_: None) -> None:
        raise ValueError("no page")

    hand = InHand(1)
    await asyncio.gather(hand.count(fails, None), return_exceptions=True)
    await hand.room()
