"""The measurement reads what it says it reads."""

from __future__ import annotations

import asyncio

import pytest

from bench.scrape import MODEL, PAGE, cpu_per_page, fleet, measure, serving
from qwen_operator.controller.scraper import scraper


def test_both_readers_are_measured_on_whole_pages() -> None:
    with serving(PAGE.read_bytes()) as port:
        result = asyncio.run(measure(3, port, looks=1))
    assert result.engines == 3
    assert min(result.operator, result.httpx, result.parser) > 0


def test_every_engine_has_an_address_of_its_own() -> None:
    engines = fleet(600)
    assert len({engine.address for engine in engines}) == 600
    assert {engine.model for engine in engines} == {MODEL}


def test_a_page_that_cannot_be_read_is_no_result() -> None:
    async def look(port: int) -> float:
        async with scraper(port) as own:
            return await cpu_per_page(own.read, fleet(1))

    with serving(b"nothing here") as port, pytest.raises(RuntimeError, match="1 of 1 pages were not read"):
        asyncio.run(look(port))
