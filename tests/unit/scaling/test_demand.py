"""What the gateway says that waits: pages that a proxy writes, and pages that nobody should write."""

from __future__ import annotations

import json
from math import inf

import pytest
from hypothesis import given

from qwen_operator.scaling.demand import PAGE_BYTES, Demand, DemandPage, Look, ModelDemand, merged, read_page
from tests.unit.fuzz.values import anything


def page(**models: object) -> bytes:
    return json.dumps({"models": models}).encode()


def test_a_page_has_the_demand_of_each_name() -> None:
    read = read_page(page(a={"held": 3, "oldest": 2.5, "asked": 0.25}, b={"held": 0, "oldest": 0, "came": 40}))
    assert read == DemandPage({"a": ModelDemand(3, 2.5, 0.25), "b": ModelDemand(came=40.0)}, hears=False)
    assert read_page(page(a={"held": 1})).models == {"a": ModelDemand(1, 0.0, inf, inf)}
    assert read_page(page()).models == {}


@pytest.mark.parametrize(("hears", "expected"), [(True, True), (False, False), (1, False), ("true", False)])
def test_a_page_says_whether_it_has_all_requests(hears: object, expected: bool) -> None:
    """The page of an earlier version has only those that found no replica."""
    assert read_page(json.dumps({"models": {}, "hears": hears}).encode()).hears is expected


def test_many_names_of_one_tenant_hide_those_of_nobody() -> None:
    """A deployment has at most four names of 96 characters, and one that sleeps needs no quota of GPUs."""
    entry = {"held": 0, "oldest": 0, "asked": 12.345000028611, "came": 12.345000028611}
    names = {f"{number:0>96}": entry for number in range(4 * 5000)}
    assert read_page(page(**names, other={"held": 1})).models["other"] == ModelDemand(1)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"held": -1},
        {"held": True},
        {"held": 1.5},
        {"held": 10**30},
        {"held": 1, "oldest": -1},
        {"held": 1, "oldest": "2"},
        {"held": 1, "oldest": 1e300},
        {"held": 1, "asked": None},
        {"held": 1, "asked": [2]},
        {"held": 1, "came": -1},
        {"held": 1, "came": "2"},
    ],
)
def test_a_wrong_entry_hides_no_other(entry: object) -> None:
    assert read_page(page(bad=entry, good={"held": 2})).models == {"good": ModelDemand(2)}


@pytest.mark.parametrize(
    "content", [b"", b"ok", b"[]", b"{}", b'{"models": []}', b"[" * 5000, b" " * PAGE_BYTES + b"{}", b'{"models": 5}']
)
def test_what_is_no_page_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_page(content)


@given(anything)
def test_no_page_raises_anything_else(value: object) -> None:
    for content in (value, {"models": value}, {"models": {"a": value}}):
        try:
            read = read_page(json.dumps(content, default=str).encode("utf-8", "replace"))
        except ValueError:
            continue
        assert all(one.held >= 0 and one.oldest >= 0 and one.asked >= 0 for one in read.models.values())


def test_the_demand_of_all_gateway_pods_and_names_adds_up() -> None:
    first = DemandPage({"a": ModelDemand(2, 5.0, 1.0, 9.0), "b": ModelDemand(1)}, hears=True)
    models = merged([first, DemandPage({"a": ModelDemand(3, 2.0, 7.0, 0.5)}, hears=True)])
    assert models == {"a": ModelDemand(5, 5.0, 1.0, 0.5), "b": ModelDemand(1)}
    demand = Demand(models, ready=1, read=1)
    assert demand.look(("a", "b", "other")).demand == ModelDemand(6, 5.0, 1.0, 0.5)
    assert demand.look(()).demand == ModelDemand()


@pytest.mark.parametrize(
    ("ready", "read", "complete", "silent"),
    [(2, 2, True, False), (2, 1, False, False), (2, 0, False, True), (0, 0, False, True)],
)
def test_what_a_look_has_seen(ready: int, read: int, complete: bool, silent: bool) -> None:
    assert Demand({}, ready, read).look(("a",)) == Look(ModelDemand(), complete, silent)
    assert Demand({}, ready, read, hears=True).look(("a",)).hears is complete
