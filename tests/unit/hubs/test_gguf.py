"""Reading one GGUF file of a repository: its header, and nothing of its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub, HubCheckpoint, HubError, HubQuery, HubReason
from qwen_operator.hubs import gguf
from qwen_operator.hubs.client import fetch_file
from qwen_runtime.checkpoints import gguf_model
from qwen_runtime.checkpoints.chat import chat_format
from qwen_runtime.checkpoints.gguf import read_header
from tests.unit.hubs.hub import COMMIT, FakeHub, serving
from tests.unit.runtime.gguf_files import TEMPLATE, qwen2

FILE = "model-q4_k_m.gguf"
CONTENT = qwen2().bytes()
HEADER = len(qwen2().header())


def repository() -> FakeHub:
    return FakeHub({FILE: CONTENT, "model-q8_0.gguf": b"", "README.md": b"#"})


async def read(hub: FakeHub, file: str = FILE) -> HubCheckpoint:
    async with serving(hub):
        return await fetch_file(HubQuery(Hub.HUGGING_FACE, "Qwen/Test", "", file), hub.address, timeout=20)


def mixture() -> bytes:
    file = qwen2()
    file.values["general.architecture"] = "qwen2moe"
    return file.bytes()


def facts() -> Checkpoint:
    position = 0

    def more(count: int) -> bytes:
        nonlocal position
        position += count
        return CONTENT[position - count : position]

    report = gguf_model.report(read_header(more, FILE), FILE)
    return replace(records.from_inspection(report), source="Hub", chat=chat_format(TEMPLATE))


@pytest.mark.parametrize("ranges", [True, False])
async def test_the_header_becomes_facts_at_a_commit(ranges: bool) -> None:
    hub = repository()
    hub.ranges = ranges
    assert await read(hub) == HubCheckpoint(facts(), COMMIT)
    assert len(hub.asked) == 3
    assert hub.asked[1] == f"/Qwen/Test/resolve/{COMMIT}/{FILE}"


async def test_only_the_beginning_is_read_and_more_of_it_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_BEGINNINGS", (HEADER // 2, HEADER))
    hub = repository()
    assert await read(hub) == HubCheckpoint(facts(), COMMIT)
    assert len(hub.asked) == 5
    monkeypatch.setattr(gguf, "_BEGINNINGS", (HEADER // 4, HEADER // 2))
    with pytest.raises(HubError, match=f"the header of {FILE} has more than {HEADER // 2} bytes"):
        await read(repository())


PARTS = qwen2().split(1, 9)
FIRST, SECOND, LAST = PARTS


async def test_the_parts_of_a_split_file_are_read_as_the_whole() -> None:
    hub = FakeHub({**PARTS, "README.md": b"#"})
    read_facts = (await read(hub, FIRST)).checkpoint
    assert replace(read_facts, digest=facts().digest) == facts()
    # The list, and for each part its address and its beginning.
    assert len(hub.asked) == 7


@pytest.mark.parametrize(
    ("files", "reason", "message"),
    [
        ({FIRST: PARTS[FIRST], LAST: PARTS[LAST]}, HubReason.NOT_FOUND, f"Qwen/Test has no file {SECOND}; its"),
        (
            PARTS | {LAST: PARTS[LAST][:-1]},
            HubReason.INVALID,
            f"{LAST} is cut off: it has {len(PARTS[LAST]) - 1} bytes",
        ),
        (PARTS | {SECOND: PARTS[LAST]}, HubReason.INVALID, f"{SECOND}: split.no is 2, it must be 1"),
    ],
)
async def test_a_part_that_is_missing_or_broken_is_named(
    files: dict[str, bytes], reason: HubReason, message: str
) -> None:
    with pytest.raises(HubError) as refused:
        await read(FakeHub(files), FIRST)
    assert refused.value.reason is reason
    assert message in str(refused.value)


async def test_all_parts_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MOST_TENSORS", 12)
    with pytest.raises(HubError, match="and its other parts have more than 12 tensors"):
        await read(FakeHub(dict(PARTS)), FIRST)


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (
            lambda hub: hub.files.pop(FILE),
            HubReason.NOT_FOUND,
            f"Qwen/Test has no file {FILE}; its GGUF files are model-q8_0.gguf",
        ),
        (
            lambda hub: hub.files.update({FILE: CONTENT[:-1]}),
            HubReason.INVALID,
            f"{FILE} is cut off: it has {len(CONTENT) - 1} bytes, its tensors need {len(CONTENT)}",
        ),
        (
            lambda hub: hub.files.update({FILE: CONTENT[:100]}),
            HubReason.INVALID,
            f"{FILE} is cut off in its metadata: it needs at least",
        ),
        (
            lambda hub: hub.files.update({FILE: b"<html>"}),
            HubReason.INVALID,
            f"{FILE} is no GGUF file: it must begin with GGUF",
        ),
        (
            lambda hub: hub.files.update({FILE: mixture()}),
            HubReason.UNKNOWN_ARCHITECTURE,
            "has the architecture 'qwen2moe': of GGUF files, the operator serves qwen2 and qwen3",
        ),
        (lambda hub: setattr(hub, "fault", "503"), HubReason.UNAVAILABLE, "the hub answered 503"),
        (lambda hub: setattr(hub, "fault", "206"), HubReason.INVALID, "the hub answered 206"),
    ],
)
async def test_what_cannot_be_read_is_told(
    damage: Callable[[FakeHub], object], reason: HubReason, message: str
) -> None:
    hub = repository()
    damage(hub)
    with pytest.raises(HubError) as refused:
        await read(hub)
    assert refused.value.reason is reason
    assert message in str(refused.value)
