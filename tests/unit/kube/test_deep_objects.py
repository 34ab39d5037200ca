"""One object that is nested 1,100 deep: the API server stores it, and whoever reads it must go on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator import untrusted
from qwen_operator.controller.resync import Resync
from qwen_operator.kube import QWENDEPLOYMENTS, Manifest
from qwen_operator.kube.client import connect
from qwen_operator.kube.decoding import MOST_LEVELS, decode
from qwen_operator.untrusted import size_of
from tests.unit import api_server
from tests.unit.fakes import FakeKube
from tests.unit.waiting import until
from tests.unit.watching import mirrored, watched_by_kopf
from tests.unit.world import CONFIG, Operator, deployment


def deep(name: str) -> Manifest:
    return deployment(name, pod={"affinity": {"nodeAffinity": api_server.DEEP}})


def names(keys: Any) -> set[str]:
    return {key[1] for key in keys}


async def test_a_list_and_a_watch_deliver_the_others(kubeconfig: Path) -> None:
    seen = await mirrored(deep, kubeconfig)
    assert names(seen) == {"bad", "worse", "first", "second"}
    assert all(size_of(item).levels <= MOST_LEVELS for item in seen.values())


async def test_a_list_of_the_operator_stores_and_queues_all(kubeconfig: Path) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deep("bad"))
    kube.put(QWENDEPLOYMENTS, deployment("first"))
    operator = Operator(kube, CONFIG)
    async with api_server.serving(kube, kubeconfig):
        api = await connect()
        await Resync(api, operator.intake, CONFIG, lambda: 0.0, lambda: 0.0).once()
        await api.aclose()
    assert names({operator.queue.take(), operator.queue.take()}) == {"bad", "first"}


async def test_kopf_keeps_watching(kubeconfig: Path, caplog: pytest.LogCaptureFixture) -> None:
    kube = FakeKube()
    kube.put(QWENDEPLOYMENTS, deep("bad"))
    kube.put(QWENDEPLOYMENTS, deployment("first"))
    operator = Operator(kube, CONFIG)

    def stored(name: str) -> bool:
        return any(item["metadata"]["name"] == name for item in operator.store.all(QWENDEPLOYMENTS))

    async with watched_by_kopf(operator, kube, kubeconfig):
        await until(lambda: stored("first") and stored("bad"))
        kube.put(QWENDEPLOYMENTS, deep("worse"))
        kube.put(QWENDEPLOYMENTS, deployment("second"))
        await until(lambda: stored("second") and stored("worse"))
    logged = [record for record in caplog.records if "too deeply" in record.getMessage()]
    assert {getattr(record, "object").rpartition("/")[2] for record in logged} == {"bad", "worse"}  # noqa: B009


def test_what_is_cut_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    raw = '{"kind":"QwenDeployment","metadata":{"namespace":"n","name":"q"},"spec":' + "[" * 3000 + "]" * 3000 + "}"
    with caplog.at_level(logging.WARNING):
        value = decode(raw)
    assert size_of(value).levels == MOST_LEVELS
    assert value["metadata"]["name"] == "q"
    assert caplog.records[0].__dict__["object"] == "n/q"


def test_an_ordinary_answer_is_what_json_makes_of_it() -> None:
    text = json.dumps({"items": [deployment()], "metadata": {"resourceVersion": "1"}, "n": [1, 1.5, None, True, "ü"]})
    assert decode(text) == decode(text.encode()) == json.loads(text)


def nested(levels: int, key: str) -> dict[str, Any]:
    """So many levels, with a text at each that may look like brackets."""
    value: dict[str, Any] = {key: key}
    for _ in range(levels - 1):
        value = {key: value, "after": key}
    return value


@pytest.mark.parametrize("key", ["a", "}", "{", "}{", '"}', "\\", '\\"}', "[]", "]"])
@pytest.mark.parametrize("levels", [1, 2, 30, 100, 101, 400])
def test_depth_is_told_from_brackets_and_texts_do_not_count(key: str, levels: int) -> None:
    raw = json.dumps({"type": "ADDED", "object": nested(levels - 1, key)} if levels > 1 else nested(1, key)).encode()
    assert untrusted.is_shallow(raw, levels)
    assert not untrusted.is_shallow(raw, levels - 1)


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_depth_by_brackets_is_the_depth_of_the_value(value: Any) -> None:
    raw = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    levels = depth(value)
    assert untrusted.is_shallow(raw, levels)
    assert levels == 0 or not untrusted.is_shallow(raw, levels - 1)


def depth(value: Any) -> int:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if members is None else 1 + max((depth(member) for member in members), default=0)
