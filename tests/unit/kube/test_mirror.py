"""The mirror: list, watch, and keep the last state through an outage."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import pytest

from qwen_operator.kube import PODS, Forbidden, Gone, Manifest, Resource, Unavailable
from qwen_operator.kube.mirror import Mirror
from tests.unit.fakes import FakeKube


class Enough(Exception):
    """The script is over."""


def _pod(name: str, labels: str = "a") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "labels": {"l": labels}},
        "spec": {},
    }


class Flaky(FakeKube):
    """Raises what the script says, one entry per list or watch, None for none."""

    script: list[Exception | None]

    def _next(self) -> None:
        if error := self.script.pop(0) if self.script else None:
            raise error

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        self._next()
        return await super().list(resource, namespace, labels)

    async def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        self._next()
        async for event in super().watch(resource, namespace, resource_version, labels):
            yield event


async def _played(api: Flaky, between: list[Callable[[], object]]) -> tuple[list[list[str]], list[int]]:
    """What the mirror told, and the attempt number at every pause; `between` runs at the pauses."""
    delivered: list[list[str]] = []
    pauses: list[int] = []

    async def pause(attempt: int) -> None:
        pauses.append(attempt)
        if not between:
            raise Enough
        between.pop(0)()

    mirror = Mirror(api, PODS, "n", "l=a", lambda objects: delivered.append(sorted(name for _, name in objects)), pause)
    with pytest.raises(Enough):
        await mirror.run()
    return delivered, pauses


def _flaky(*script: Exception | None) -> Flaky:
    api = Flaky()
    api.script = list(script)
    return api


async def test_changes_come_by_watch_and_only_of_the_selection() -> None:
    api = _flaky()
    api.put(PODS, _pod("one"))

    def later() -> None:
        api.put(PODS, _pod("two"))
        api.put(PODS, _pod("other", "b"))
        api.finish(api.one(PODS, "one"), PODS)

    delivered, pauses = await _played(api, [later])
    assert delivered == [["one"], ["one", "two"], ["two"]]
    assert pauses == [0, 0]


async def test_an_outage_changes_nothing_and_waits_longer_each_time() -> None:
    down = Unavailable(0, "NoAnswer", "down")
    api = _flaky(down, down, None, down, down)
    api.put(PODS, _pod("one"))
    delivered, pauses = await _played(api, [lambda: None] * 4)
    assert delivered == [["one"]]
    assert pauses == [1, 2, 3, 4, 0]


async def test_what_was_deleted_unseen_is_found_by_the_list_after_gone() -> None:
    api = _flaky(None, None, Gone(410, "Expired", "too old"))
    api.put(PODS, _pod("one"))
    api.put(PODS, _pod("two"))

    def unseen() -> None:
        api.finish(api.one(PODS, "one"), PODS)
        api.journal.clear()

    delivered, _ = await _played(api, [unseen, lambda: None])
    assert delivered == [["one", "two"], ["two"]]


@pytest.mark.parametrize("seen_before", [False, True])
async def test_a_missing_right_changes_nothing_and_is_told_once(
    seen_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It may last for days. When the right comes back, the mirror goes on by itself."""
    caplog.set_level(logging.INFO)
    no = Forbidden(403, "Forbidden", 'cannot list resource "pods" in the namespace "n"')
    # Before: a list and a watch. Afterwards the watch goes on from there, or there is the first list.
    api = _flaky(*([None, None] if seen_before else []), no, no, no, *([None] if seen_before else [None, None]))
    api.put(PODS, _pod("one"))
    rights: list[bool] = []
    pauses: list[int] = []
    delivered: list[list[str]] = []

    async def pause(attempt: int) -> None:
        pauses.append(attempt)
        if len(pauses) == 2 + seen_before:
            api.put(PODS, _pod("two"))
        if not api.script:
            raise Enough

    mirror = Mirror(api, PODS, "n", "l=a", lambda objects: delivered.append(sorted(name for _, name in objects)), pause)
    mirror.on_right = rights.append
    with pytest.raises(Enough):
        await mirror.run()
    assert delivered == ([["one"], ["one", "two"]] if seen_before else [["one", "two"]])
    assert rights == [False, False, False, True]
    assert pauses == [*([0] if seen_before else []), 1, 2, 3, 0]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "list or watch refused"),
        ("INFO", "list or watch allowed again in namespace n"),
    ]
    assert 'in the namespace "n"' in caplog.records[0].__dict__["error"]


async def test_another_missing_right_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    refusals = [Forbidden(403, "Forbidden", f"cannot {verb} pods") for verb in ("list", "watch", "watch")]
    await _played(_flaky(refusals[0], None, *refusals[1:], None), [lambda: None] * 3)
    assert [record.__dict__["error"].rpartition(": ")[2] for record in caplog.records] == [
        "cannot list pods",
        "cannot watch pods",
    ]
